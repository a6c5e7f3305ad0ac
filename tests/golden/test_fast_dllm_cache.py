"""The approximate caches against the published ones: the same passes, the same tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, finished, run, tiny_engine, trajectory
from vdiff_grpc.engine.assembly import banned_ids
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.packing import PackedStep
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.runner import Runner
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule
from vdiff_grpc.engine.types import Request, RequestParams

CASES = json.loads((GOLDEN / "fast_dllm_cache.json").read_text())["cases"]
KINDS = {
    "generate_with_prefix_cache": CacheKind.PREFIX,
    "generate_with_dual_cache": CacheKind.DUAL,
}


def record_spans(engine: Engine, spans: list[list[int]]) -> None:
    """Keeps the range of positions that each pass computes."""

    class Recorder(Runner):
        def forward(self, packed: PackedStep) -> Any:
            for variant in packed.variants:
                places = variant.position_ids
                spans.append([int(places[0]), int(places[-1]) + 1])
            return super().forward(packed)

    runner = engine.runner
    engine.runner = Recorder(
        runner.model,
        engine.info,
        banned_ids(engine.model, engine.info, engine.tokenizer),
        fill=runner.fill,
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_a_cached_row_computes_and_commits_what_the_reference_does(case: dict[str, Any]) -> None:
    given = case["params"]
    threshold = given["threshold"]
    params = RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        steps=given["steps"] if threshold is None else None,
        strategy=FixedSchedule() if threshold is None else ConfidenceThreshold(threshold),
        cache=KINDS[case["function"]],
    )
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    spans: list[list[int]] = []
    record_spans(engine, spans)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params))
    ours = trajectory(events)
    # the reference makes one more pass where a block's first one has filled it
    theirs = [(step, span) for step, span in zip(case["steps"], case["spans"], strict=True) if step]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step, _ in theirs
    ]
    assert spans == [span for _, span in theirs]
    for step, (expected, _) in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    output = finished(events).outputs[0]
    assert list(output.canvas) == case["final"]
    assert output.forward_passes == len(spans)
    assert output.computed_tokens == sum(end - begin for begin, end in spans)


def test_the_recorded_runs_part_from_the_exact_ones_somewhere() -> None:
    """Else the test above would pass with a cache that is never used."""
    parted = 0
    for case in CASES:
        given = case["params"]
        threshold = given["threshold"]
        params = RequestParams(
            max_new_tokens=given["gen_length"],
            block_length=given["block_length"],
            steps=given["steps"] if threshold is None else None,
            strategy=FixedSchedule() if threshold is None else ConfidenceThreshold(threshold),
        )
        engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
        events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params))
        exact = [[(p, t) for p, t, _ in step] for step in trajectory(events)]
        parted += exact != [[(p, t) for p, t, _ in step] for step in case["steps"] if step]
    assert parted
