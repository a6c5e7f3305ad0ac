"""LLaDA against its reference: logits, and whole trajectories of generate.py and Fast-dLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.tools import GOLDEN, finished, run, tiny_engine, trajectory
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, Remasking
from vdiff_grpc.engine.types import Request, RequestParams


def _cases(file: str) -> list[Any]:
    cases = json.loads((GOLDEN / file).read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in cases]


class FedNoise(CounterNoise):
    """The reference's own random numbers, addressed by step and canvas position."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._order = case.get("rand")
        noise = load_file(GOLDEN / "llada_noise.safetensors")
        self._uniforms = noise.get(case["id"])

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        assert self._uniforms is not None
        drawn = self._uniforms[torch.from_numpy(rows.steps), torch.from_numpy(rows.positions)]
        return -drawn.log().float().to(device)

    def order_uniforms(self, rows: NoiseRows) -> np.ndarray:
        if self._order is None:
            return super().order_uniforms(rows)
        return np.array(
            [self._order[s][p] for s, p in zip(rows.steps, rows.positions, strict=True)],
            dtype=np.float32,
        )


@pytest.mark.parametrize("checkpoint", ["tiny-llada", "tiny-llada-tied"])
def test_logits_equal_the_reference_modelling_code(checkpoint: str) -> None:
    check_logits(checkpoint)


def check_logits(
    checkpoint: str, device: str = "cpu", dtype: str = "float32", atol: float = 1e-4
) -> None:
    model = loader.load(str(GOLDEN / checkpoint), device, dtype)
    recorded = load_file(GOLDEN / "llada_logits.safetensors")
    names = [
        n.removesuffix(".ids")
        for n in recorded
        if n.startswith(f"{checkpoint}.") and n.endswith(".ids")
    ]
    assert names
    canvases = [recorded[f"{name}.ids"] for name in names]
    lengths = [len(canvas) for canvas in canvases]
    layout = AttentionLayout.of_lengths(lengths, [FULL] * len(lengths))
    logits = model.logits(
        torch.cat(canvases).to(device),
        torch.cat([torch.arange(length) for length in lengths]).to(device),
        layout,
        torch.arange(sum(lengths)).to(device),
    ).cpu()
    for name, ours in zip(names, logits.split(lengths), strict=True):
        torch.testing.assert_close(ours, recorded[f"{name}.logits"], atol=atol, rtol=0)


def check_case(
    case: dict[str, Any],
    params: RequestParams,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    atol: float = 1e-4,
) -> None:
    engine = tiny_engine(
        GOLDEN / case["checkpoint"],
        noise=FedNoise(case),
        early_end=False,
        device=device,
        dtype=dtype,
    )
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params))
    ours, theirs = trajectory(events), case["steps"]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    if case["params"].get("remasking") != "random":  # there the reference's "confidence" is noise
        for step, expected in zip(ours, theirs, strict=True):
            assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=atol)
    assert list(finished(events).outputs[0].canvas) == case["final"]


def llada_params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    return RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        steps=given["steps"],
        temperature=given["temperature"],
        cfg_scale=given["cfg_scale"],
        seed=0,
        strategy=FixedSchedule(Remasking(given["remasking"])),
    )


LLADA_CASES = [
    # more steps than positions: passes that commit nothing, which we refuse by name
    case
    for case in _cases("llada_generate.json")
    if case.values[0]["id"] != "g8-b8-s12"
]


@pytest.mark.parametrize("case", LLADA_CASES)
def test_fixed_schedule_commits_what_llada_generate_commits(case: dict[str, Any]) -> None:
    check_case(case, llada_params(case))


def threshold_params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    return RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        temperature=0.0,
        strategy=ConfidenceThreshold(given["threshold"]),
    )


THRESHOLD_CASES = [
    # a threshold above 1 is refused, and without one it is the fixed schedule
    case
    for case in _cases("fast_dllm_threshold.json")
    if case.values[0]["params"]["threshold"] is not None
    and case.values[0]["params"]["threshold"] <= 1
]


@pytest.mark.parametrize("case", THRESHOLD_CASES)
def test_threshold_commits_what_fast_dllm_commits(case: dict[str, Any]) -> None:
    check_case(case, threshold_params(case))


def test_there_are_enough_recorded_settings() -> None:
    assert len(LLADA_CASES) >= 12
    assert len(THRESHOLD_CASES) >= 6
    assert Path(GOLDEN / "README.md").exists()
