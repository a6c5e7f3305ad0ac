"""Backends of attention on CUDA, against sdpa and in any company. No GPU has run them yet."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_company import check_company
from tests.engine.test_kernels import random_segments
from vdiff_grpc.engine.kernels import registry, sdpa, varlen
from vdiff_grpc.engine.kernels.masks import CAUSAL, FULL, MaskRule, block_causal
from vdiff_grpc.engine.kernels.registry import Place, attend
from vdiff_grpc.engine.kernels.segments import Segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

HEAD_DIM = 64


def place(dtype: torch.dtype, *, batch_invariant: bool = False) -> Place:
    return Place(torch.device("cuda"), dtype, 4, 2, HEAD_DIM, batch_invariant)


def tensors(segments: Segments, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, heads, HEAD_DIM, generator=generator).to("cuda", dtype)
        for count, heads in (
            (segments.cu_q[-1], 4),
            (segments.cu_k[-1], 2),
            (segments.cu_k[-1], 2),
        )
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("name", "dtype", "atol"),
    [
        ("varlen", torch.bfloat16, 0.03),
        ("varlen", torch.float16, 0.005),
        ("flex", torch.bfloat16, 0.03),
        ("flex", torch.float32, 0.01),  # its products may be TF32
    ],
)
def test_a_backend_computes_what_sdpa_computes(
    name: str, dtype: torch.dtype, atol: float, seed: int
) -> None:
    if reason := registry.refusal(name, place(dtype)):
        pytest.fail(f"{name} does not work here: {reason}")
    segments = random_segments(seed, backends=(name,))
    q, k, v = tensors(segments, dtype, seed)
    for window in (None, 7):
        expected = sdpa.attend(q, k, v, segments, None, window)
        found = attend(q, k, v, segments, None, window)
        torch.testing.assert_close(found, expected, atol=atol, rtol=0.02)


@pytest.mark.parametrize(
    ("rule", "num_q", "num_k"),
    [
        (FULL, 100, 100),
        (FULL, 33, 300),
        (CAUSAL, 70, 70),
        (CAUSAL, 1, 90),
        (block_causal(4), 4, 60),
    ],
)
def test_varlen_gives_a_segment_the_same_bits_in_any_company(
    rule: MaskRule, num_q: int, num_k: int
) -> None:
    where = place(torch.bfloat16, batch_invariant=True)
    if reason := varlen.refusal(where.device, where.dtype, HEAD_DIM, batch_invariant=True):
        pytest.skip(reason)
    alone = Segments((0, num_q), (0, num_k), (rule,), False, ("varlen",))
    q, k, v = tensors(alone, torch.bfloat16, 1)
    expected = attend(q, k, v, alone, None, None)
    for before, after in ((1, 700), (130, 5), (511, 64)):
        company = Segments(
            (0, before, before + num_q, before + num_q + after),
            (0, before, before + num_k, before + num_k + after),
            (FULL, rule, CAUSAL),
            False,
            ("varlen",),
        )
        others = tensors(company, torch.bfloat16, before)
        others[0][before : before + num_q] = q
        others[1][before : before + num_k] = k
        others[2][before : before + num_k] = v
        found = attend(*others, company, None, None)[before : before + num_q]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_company_changes_nothing_in_bfloat16_by_any_backend(attention: str) -> None:
    check_company(
        2,
        device="cuda",
        dtype="bfloat16",
        batch_invariant=True,
        max_step_tokens=1024,
        attention=attention,
    )
