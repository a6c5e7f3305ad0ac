"""SDAR's strategies against its generate.py, on the tiny block-causal checkpoint."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, add, finished, run, run_all, tiny_engine, trajectory
from tests.golden.fed import FedDraws
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import DynamicThreshold, FixedSchedule, LeftToRight, Strategy
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

PATH = GOLDEN / "tiny-sdar"
CASES = json.loads((GOLDEN / "sdar_generate.json").read_text())["cases"]


def sdar_engine(block_length: int, **more: Any) -> Engine:
    """The checkpoint's own block length is 4; the reference takes it as an argument."""
    engine = tiny_engine(PATH, **more)
    engine.info = dataclasses.replace(engine.info, block_length=block_length)
    return engine


def strategy_of(given: dict[str, Any]) -> Strategy:
    if given["remasking_strategy"] == "sequential":
        return LeftToRight()
    if given["remasking_strategy"] == "low_confidence_static":
        return FixedSchedule()
    return DynamicThreshold(given["confidence_threshold"])


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_sdar_strategies_commit_what_sdar_commits(case: dict[str, Any]) -> None:
    given = case["params"]
    sampled, stops = case["draw"] == "multinomial", given["stop_ids"] is not None
    engine = sdar_engine(given["block_length"], noise=FedDraws(case.get("drawn")), early_end=stops)
    params = RequestParams(
        max_new_tokens=given["gen_length"],
        temperature=given["temperature"] if sampled else 0.0,
        strategy=strategy_of(given),
    )
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params))
    ours, theirs = trajectory(events), case["steps"]
    canvas = finished(events).outputs[0].canvas
    asked = len(case["prompt"]) + given["gen_length"]
    if stops or len(case["final"]) > asked:
        # an answer is over at its end token or length; the reference fills the block's rest
        assert 0 < len(ours) <= len(theirs)
        theirs = theirs[: len(ours)]
    if not stops:
        assert canvas[:asked] == tuple(case["final"][:asked])
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)


def test_positions_past_the_answer_are_told_when_they_are_filled_before_its_end() -> None:
    case = next(c for c in CASES if c["id"] == "dynamic0.4-b16-g32-p11")
    asked = len(case["prompt"]) + 32
    params = RequestParams(max_new_tokens=32, strategy=DynamicThreshold(0.4))
    engine = sdar_engine(16, early_end=False)
    steps = trajectory(run(engine, Request(TokensPrompt(tuple(case["prompt"])), params)))
    assert max(position for step in steps for position, *_ in step) >= asked


def request(threshold: float, steps: int | None = None, cfg_scale: float = 0.0) -> Request:
    params = RequestParams(
        max_new_tokens=18,
        steps=steps,
        temperature=0.5,
        cfg_scale=cfg_scale,
        seed=3,
        strategy=DynamicThreshold(threshold),
    )
    return Request(TokensPrompt((3, 1, 4, 1, 5)), params, granularity=Granularity.STEPS)


def test_dynamic_threshold_gives_the_same_events_alone_and_in_company() -> None:
    engine = sdar_engine(4, early_end=False)
    requests = [request(0.9), request(0.4), request(0.9, steps=9), request(0.3, cfg_scale=1.0)]
    alone = [run(engine, given)[:-1] for given in requests]
    for key, given in enumerate(requests):
        add(engine, key, given)
    other = RequestParams(max_new_tokens=30, temperature=1.0, seed=1, strategy=FixedSchedule())
    add(engine, 99, Request(TokensPrompt((7, 8)), other))
    together = run_all(engine)
    for key, expected in enumerate(alone):
        assert together[key][:-1] == expected


def test_fewer_steps_ask_for_more_at_once_when_too_few_are_confident() -> None:
    """On a model with full attention, where the block is the caller's."""
    prompt, strategy = TokensPrompt((3, 1, 4)), DynamicThreshold(1.0)
    params = RequestParams(max_new_tokens=16, block_length=8, steps=6, strategy=strategy)
    events = run(tiny_engine(early_end=False), Request(prompt, params))
    assert [len(step) for step in trajectory(events)] == [3, 3, 2, 3, 3, 2]


def test_frozen_text_stays_where_it_is() -> None:
    prompt = InfillPrompt(((3, 1, 4), Hole(4), (15, 9), Hole(3), (2, 6)))
    params = RequestParams(
        temperature=0.5, block_length=3, cfg_scale=1.0, seed=2, strategy=DynamicThreshold(0.3)
    )
    canvas = finished(run(tiny_engine(), Request(prompt, params))).outputs[0].canvas
    assert canvas[:3] == (3, 1, 4)
    assert canvas[7:9] == (15, 9)
    assert canvas[12:] == (2, 6)
