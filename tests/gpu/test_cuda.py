"""Golden and company tests on CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.test_company import check_company
from tests.engine.test_parallel import check_split
from tests.engine.tools import GOLDEN
from tests.golden.test_llada import (
    LLADA_CASES,
    THRESHOLD_CASES,
    check_case,
    check_logits,
    llada_params,
    threshold_params,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("case", LLADA_CASES)
def test_float32_commits_what_llada_generate_commits(case: dict[str, Any]) -> None:
    check_case(case, llada_params(case), device="cuda", atol=1e-3)


@pytest.mark.parametrize("case", THRESHOLD_CASES)
def test_float32_commits_what_fast_dllm_commits(case: dict[str, Any]) -> None:
    check_case(case, threshold_params(case), device="cuda", atol=1e-3)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-3), ("bfloat16", 0.25)])
@pytest.mark.parametrize("checkpoint", ["tiny-llada", "tiny-llada-tied"])
def test_logits_are_the_references(checkpoint: str, dtype: str, atol: float) -> None:
    """bfloat16 keeps 8 bits: its greedy choices may differ, its logits may not by much."""
    check_logits(checkpoint, device="cuda", dtype=dtype, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_changes_nothing(dtype: str) -> None:
    check_company(1, device="cuda", dtype=dtype, batch_invariant=True, max_step_tokens=1024)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_two_devices_give_the_tokens_of_one_and_the_same_in_any_company() -> None:
    check_split(
        GOLDEN / "tiny-llada-tied",
        2,
        device="cuda",
        batch_invariant=True,
        max_step_tokens=1024,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_company_changes_nothing_in_eight_bits(package: str) -> None:
    pytest.importorskip(package)
    name = {"torchao": "torchao-int8", "bitsandbytes": "bitsandbytes-8bit"}[package]
    shape = {"batch_invariant": True, "max_step_tokens": 1024}
    check_company(1, device="cuda", dtype="bfloat16", quantization=name, **shape)
