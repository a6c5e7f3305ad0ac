"""A model over several processes: the same tokens as from one, and the same in any company."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.test_company import canvases, mixed_requests
from tests.engine.tools import GOLDEN, TINY, LogitsRecorder, add, run_all, tiny_engine
from tests.golden.test_masked_lm import build
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event
from vdiff_grpc.engine.messages import Ended
from vdiff_grpc.engine.parallel.messages import Part
from vdiff_grpc.engine.parallel.model import ParallelModel
from vdiff_grpc.engine.parallel.ranks import RankLostError, Ranks
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import (
    AttentionPattern,
    EngineConfig,
    Granularity,
    Request,
    RequestParams,
)
from vdiff_grpc.errors import CheckpointError

WITH_BIASES = "tiny-llada-moe with biases"
# Checkpoint and number of processes: an odd vocabulary; queries with biases; experts, and biases
# that are added once; fewer kv heads, one matrix for both ends; so many that a sum's order matters.
SPLITS = [
    ("tiny-llada", 2),
    ("tiny-sdar", 2),
    pytest.param("tiny-dream", 2, marks=pytest.mark.long),
    pytest.param("tiny-causal", 2, marks=pytest.mark.long),
    pytest.param(WITH_BIASES, 2, marks=pytest.mark.long),
    pytest.param("tiny-llada-tied", 2, marks=pytest.mark.long),
    pytest.param("tiny-llada", 4, marks=pytest.mark.long),
]

Logits = dict[tuple[int, int], list[torch.Tensor]]


class Recorded:
    """An engine that keeps what its model computes."""

    def __init__(self, checkpoint: Path, size: int, **config: Any) -> None:
        self.engine = tiny_engine(checkpoint, tensor_parallel_size=size, **config)
        self.recorder = LogitsRecorder.install(self.engine)

    def run(self, requests: dict[int, Request]) -> tuple[dict[int, list[Event]], Logits]:
        """All at a time."""
        self.recorder.seen.clear()
        for key, request in requests.items():
            add(self.engine, key, request)
        return run_all(self.engine), dict(self.recorder.seen)


def requests_of(engine: Engine) -> dict[int, Request]:
    """Mixed ones, temperatures of 0 and above, whose strategy the model has."""
    if engine.info.attention is not AttentionPattern.FULL:  # with prompts of more than a page
        prompts = [tuple((key + 3 * i) % 90 for i in range(20 + 8 * key)) for key in range(9)]
        return {
            key: Request(
                TokensPrompt(prompt),
                RequestParams(max_new_tokens=8, seed=key, temperature=0.2 * key),
                granularity=Granularity.STEPS,
            )
            for key, prompt in enumerate(prompts)
        }
    return {
        key: request
        for key, request in enumerate(mixed_requests())
        if request.params.strategy is None or request.params.strategy.NAME in engine.info.strategies
    }


@pytest.mark.parametrize(("checkpoint", "size"), SPLITS)
def test_several_processes_give_the_tokens_of_one_and_the_same_in_any_company(
    checkpoint: str, size: int, tmp_path: Path
) -> None:
    check_split(_with_biases(tmp_path) if checkpoint == WITH_BIASES else GOLDEN / checkpoint, size)


def check_split(checkpoint: Path, size: int, tolerance: float = 1e-5, **config: Any) -> None:
    """tolerance: of the largest logit."""
    config.setdefault("share_prompts", False)  # else a row computes less the second time
    one, several = Recorded(checkpoint, 1, **config), Recorded(checkpoint, size, **config)
    try:
        requests = requests_of(one.engine)
        assert len(requests) > 8
        expected, of_one = one.run(requests)
        found, of_several = several.run(requests)
        assert {key: canvases(events) for key, events in found.items()} == {
            key: canvases(events) for key, events in expected.items()
        }
        _check_close(of_one, of_several, tolerance)
        for key, request in requests.items():
            alone, logits = several.run({key: request})
            assert alone[key][:-1] == found[key][:-1]
            for row, steps in logits.items():
                for a, b in zip(steps, of_several[row], strict=True):
                    assert torch.equal(a, b), f"row {row}: {(a - b).abs().max()}"
    finally:
        several.engine.close()


def _with_biases(folder: Path) -> Path:
    """tiny-llada-moe, and biases of all projections of its attention."""
    source = GOLDEN / "tiny-llada-moe"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    weights = load_file(source / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        if ".self_attn." in name:
            bias = name.replace(".weight", ".bias")
            weights[bias] = torch.linspace(-1, 1, len(weights[name]), dtype=weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _check_close(expected: Logits, found: Logits, tolerance: float) -> None:
    """Sums are split, so the last bits differ."""
    assert expected.keys() == found.keys()
    largest = max(float(step.abs().max()) for steps in expected.values() for step in steps)
    for row, steps in expected.items():
        for a, b in zip(steps, found[row], strict=True):
            assert float((a - b).abs().max()) <= tolerance * largest, row


def test_a_rank_that_is_killed_ends_the_engine_with_its_reason() -> None:
    lost = list[Ended]()

    config = EngineConfig(str(TINY), device="cpu", threads=1, tensor_parallel_size=2)
    engine = Engine(config, on_lost=lost.append)
    try:
        assert isinstance(engine.model, ParallelModel)
        [pid] = engine.model.ranks.pids
        for key, request in enumerate(mixed_requests(3)):
            add(engine, key, request)
        engine.step()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RankLostError, match=r"rank 1 .* killed by SIGKILL"):
            run_all(engine)
        reason = "rank 1 of the tensor-parallel model has ended: killed by SIGKILL"
        assert lost == [Ended(reason, by_itself=False)]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("checkpoint", "size", "reason"),
    [
        ("tiny-llada", 3, r"num_attention_heads \(4\) does not divide by it"),
        ("tiny-llada-tied", 4, r"num_key_value_heads \(2\) does not divide by it"),
        ("tiny-llada2", 2, "the family llada2 are not split"),
        ("tiny-diffusion-gemma", 2, "the family diffusion_gemma are not split"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_before_a_process_is_started(
    checkpoint: str, size: int, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"tensor_parallel_size is {size}: .*{reason}"):
        tiny_engine(GOLDEN / checkpoint, tensor_parallel_size=size)


def test_a_class_without_a_plan_is_refused(tmp_path: Path) -> None:
    build("Bert", tmp_path)
    with pytest.raises(CheckpointError, match="BertForMaskedLM has no tensor-parallel plan"):
        tiny_engine(tmp_path, tensor_parallel_size=2)


@pytest.mark.long
def test_what_fails_in_another_process_is_told(tmp_path: Path) -> None:
    """One that cannot even meet the others."""
    lost = list[Ended]()
    ranks = Ranks(lost.append)
    try:
        part = Part(1, 2, str(tmp_path), str(TINY), "cpu", "float32", 1, exact=True)
        ranks.start([part])  # its store is a folder
        with pytest.raises(CheckpointError, match=r"rank 1 .* ended: DistStoreError: Is a dir"):
            ranks.wait_loaded()
        assert [ended.by_itself for ended in lost] == [True]
    finally:
        ranks.close()
