"""KLASS against its reference; and what a service adds to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tests.engine.tools import (
    GOLDEN,
    change,
    finished,
    run,
    same_in_company,
    tiny_engine,
    trajectory,
)
from vdiff_grpc.engine.decoding.klass import KlassRule
from vdiff_grpc.engine.decoding.rule import Action
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import ConfidenceThreshold, Klass
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

RECORDED: list[dict[str, Any]] = json.loads((GOLDEN / "klass.json").read_text())["cases"]
CASES = [pytest.param(case, id=case["id"]) for case in RECORDED]


def params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    return RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        steps=given["steps"],
        temperature=0.0,
        strategy=Klass(given["conf_threshold"], given["kl_threshold"], given["kl_history_length"]),
    )


@pytest.mark.parametrize("case", CASES)
def test_klass_commits_what_the_reference_commits(case: dict[str, Any]) -> None:
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params(case)))
    ours, theirs = trajectory(events), case["steps"]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    assert list(finished(events).outputs[0].canvas) == case["final"]
    assert finished(events).outputs[0].forward_passes == case["forwards"]


def first_steps(case: dict[str, Any]) -> list[list[int]]:
    """Of each block after the first: how many were ready at its first steps."""
    given, begin = case["params"], len(case["prompt"])
    blocks = [(step[0][0] - begin) // given["block_length"] for step in case["steps"]]
    return [
        [ready for ready, of in zip(case["ready"], blocks, strict=True) if of == block]
        for block in range(1, blocks[-1] + 1)
    ]


def test_the_recorded_cases_need_what_was_seen_of_the_next_block() -> None:
    assert len(RECORDED) >= 8
    assert all(sum(case["ready"]) for case in RECORDED)
    assert any(0 in case["ready"] for case in RECORDED)
    early = [
        case["params"]["kl_history_length"]
        for case in RECORDED
        for steps in first_steps(case)
        if any(steps[: case["params"]["kl_history_length"]])
    ]
    assert set(early) == {1, 2, 3}, "ready as early as can be, so by the block's first call"
    at_once = [
        case["params"]["block_length"] for case in RECORDED for s in first_steps(case) if len(s) < 2
    ]
    assert max(at_once) > 2, "blocks that are left in one step"


def row(history: int, *, steps: int = 8, new: int = 16, block: int = 4) -> Sequence:
    engine = tiny_engine()
    asked = RequestParams(
        max_new_tokens=new, block_length=block, steps=steps, strategy=Klass(history=history)
    )
    request = resolve(
        Request(TokensPrompt((1, 2, 3)), asked), engine.info, engine.limits, engine.tokenizer
    )
    return Sequence(1, request, 0, engine.info, None)


def test_the_next_block_is_looked_at_only_when_a_call_may_be_the_blocks_last() -> None:
    rule, one = KlassRule(), row(history=2, steps=16)
    assert rule.plan(one)[0].positions.tolist() == [3, 4, 5, 6]
    change(one, Action.UNMASK, [5], [7])
    assert rule.plan(one)[0].positions.tolist() == [3, 4, 6, 7, 8, 9, 10]
    at_once = row(history=8, steps=4)  # the share is the whole block
    assert rule.plan(at_once)[0].positions.tolist() == [*range(3, 11)]
    last = row(history=1, new=4, steps=4)
    assert rule.plan(last)[0].positions.tolist() == [3, 4, 5, 6]


def test_past_the_schedule_nothing_stays_masked() -> None:
    """Where fewer are ready than the schedule's share, the reference ends with masks left."""
    engine = tiny_engine(early_end=False)
    asked = RequestParams(max_new_tokens=24, block_length=12, steps=12, strategy=Klass(0.4, 0.4))
    steps = []
    for seed in range(8):
        output = finished(run(engine, Request(TokensPrompt((seed, 9, 50)), asked))).outputs[0]
        assert engine.info.mask_token_id not in output.canvas
        steps.append(output.steps)
    assert max(steps) > 12


def company() -> list[Request]:
    asked = RequestParams(
        max_new_tokens=14, block_length=5, steps=9, seed=3, strategy=Klass(0.2, 0.8)
    )
    holes = InfillPrompt(((7, 7, 3), Hole(5), (3, 4, 5), Hole(4), (9,)))
    plain = dataclasses.replace(asked, steps=None, strategy=ConfidenceThreshold(0.3))
    requests = [
        Request(TokensPrompt((4, 8, 15)), asked),
        Request(TokensPrompt((4, 8, 15)), dataclasses.replace(asked, temperature=1.0, seed=1)),
        Request(TokensPrompt((1, 2)), plain),
        Request(
            TokensPrompt((5,)),
            dataclasses.replace(asked, cfg_scale=1.5, strategy=Klass(0.1, 2.0, 1)),
        ),
        Request(holes, dataclasses.replace(asked, max_new_tokens=None, steps=None, block_length=3)),
        Request(
            TokensPrompt(tuple(range(30))),
            dataclasses.replace(asked, n=2, strategy=Klass(0.1, 1.0, 3)),
        ),
    ]
    return [dataclasses.replace(request, granularity=Granularity.STEPS) for request in requests]


def test_alone_and_in_company_are_the_same() -> None:
    engine = tiny_engine(early_end=False)
    same_in_company(engine, company())


def test_frozen_positions_stay_as_they_are() -> None:
    engine = tiny_engine(early_end=False)
    canvas = finished(run(engine, company()[4])).outputs[0].canvas
    assert (canvas[:3], canvas[8:11], canvas[15:]) == ((7, 7, 3), (3, 4, 5), (9,))
    assert engine.info.mask_token_id not in canvas


def test_guidance_changes_the_answer_and_counts_twice() -> None:
    asked = RequestParams(max_new_tokens=12, block_length=6, strategy=Klass(0.2, 1.0))
    outputs = [
        finished(
            run(
                tiny_engine(early_end=False),
                Request(TokensPrompt((4, 8, 15)), dataclasses.replace(asked, cfg_scale=scale)),
            )
        ).outputs[0]
        for scale in (0.0, 2.0)
    ]
    assert outputs[0].canvas != outputs[1].canvas
    assert outputs[0].forward_passes == outputs[0].steps
    assert outputs[1].forward_passes == 2 * outputs[1].steps


@pytest.mark.parametrize("checkpoint", ["tiny-dream", "tiny-sdar"])
def test_it_works_with_a_shift_and_where_later_blocks_are_not_seen(checkpoint: str) -> None:
    engine = tiny_engine(GOLDEN / checkpoint, early_end=False)
    # SDAR's own temperature is not 0
    asked = RequestParams(max_new_tokens=12, block_length=4, seed=1, strategy=Klass(0.1, 2.0, 1))
    output = finished(run(engine, Request(TokensPrompt((5, 6, 7)), asked))).outputs[0]
    assert engine.info.mask_token_id not in output.canvas
    assert np.all(np.array(output.canvas) >= 0)
    assert 3 <= output.steps < 12
