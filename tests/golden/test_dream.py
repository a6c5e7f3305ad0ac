"""Dream's four orders against the published sampler, on the tiny Dream checkpoint."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from tests.engine.tools import GOLDEN, add, finished, run, run_all, tiny_engine, trajectory
from tests.golden.fed import FedDraws, recorded_order
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import DreamOrder, DreamSchedule, FixedSchedule
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

PATH = GOLDEN / "tiny-dream"
CASES = [
    # more steps than positions are refused by name
    case
    for case in json.loads((GOLDEN / "dream_generate.json").read_text())["cases"]
    if case["params"]["steps"] <= case["params"]["max_new_tokens"]
]


def params_of(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    return RequestParams(
        max_new_tokens=given["max_new_tokens"],
        block_length=given["max_new_tokens"],
        steps=given["steps"],
        temperature=given["temperature"],
        top_p=given["top_p"] or 1.0,
        top_k=given["top_k"] or 0,
        seed=0,
        # origin has no order to heat
        strategy=DreamSchedule(DreamOrder(given["alg"]), given["alg_temp"]),
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_dream_schedule_commits_what_dream_commits(case: dict[str, Any]) -> None:
    noise = FedDraws(case.get("drawn"), recorded_order(case))
    engine = tiny_engine(PATH, noise=noise, early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params_of(case)))
    ours, theirs = trajectory(events), list(case["steps"])
    while not theirs[-1]:  # the reference makes its last passes over a canvas that is full
        theirs.pop()
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    assert list(finished(events).outputs[0].canvas) == case["final"]
    given = case["params"]
    plain = not given["temperature"] and not given["top_p"] and not given["top_k"]
    if given["alg"] in ("maskgit_plus", "origin") and plain:  # else theirs is another measure
        for step, expected in zip(ours, theirs, strict=True):
            assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)


def test_with_a_step_for_each_position_the_first_commits_nothing_and_the_last_two() -> None:
    case = next(
        c for c in CASES if c["params"]["steps"] == c["params"]["max_new_tokens"] and c["k"]
    )
    engine = tiny_engine(PATH, early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params_of(case)))
    counts = [len(step) for step in trajectory(events)]
    assert counts[0] == 0
    assert counts[-1] == 2
    assert set(counts[1:-1]) == {1}


def request(
    order: DreamOrder, heat: float | None = None, cfg_scale: float = 0.0, seed: int = 5
) -> Request:
    return Request(
        TokensPrompt((3, 1, 4, 1, 5)),
        RequestParams(
            max_new_tokens=20,
            block_length=8,
            steps=12,
            temperature=0.7,
            top_p=0.9,
            cfg_scale=cfg_scale,
            seed=seed,
            strategy=DreamSchedule(order, heat),
        ),
        granularity=Granularity.STEPS,
    )


REQUESTS = [
    request(DreamOrder.ENTROPY),
    request(DreamOrder.ENTROPY, heat=0.4, seed=6),
    request(DreamOrder.MASKGIT_PLUS, heat=1.0, cfg_scale=1.5),
    request(DreamOrder.TOPK_MARGIN, cfg_scale=0.5),
    request(DreamOrder.ORIGIN),
]


def test_every_order_gives_the_same_events_alone_and_in_company() -> None:
    engine = tiny_engine(PATH, early_end=False)
    alone = [run(engine, given)[:-1] for given in REQUESTS]
    for key, given in enumerate(REQUESTS):
        add(engine, key, given)
    other = RequestParams(max_new_tokens=30, temperature=1.0, seed=1, strategy=FixedSchedule())
    add(engine, 99, Request(TokensPrompt((7, 8)), other))
    together = run_all(engine)
    for key, expected in enumerate(alone):
        assert together[key][:-1] == expected


def test_each_block_runs_through_the_whole_time() -> None:
    given = request(DreamOrder.ENTROPY)
    params = dataclasses.replace(given.params, block_length=8, steps=20)
    events = run(tiny_engine(PATH, early_end=False), dataclasses.replace(given, params=params))
    counts = [len(step) for step in trajectory(events)]
    assert counts == [0, *[1] * 6, 2, 0, *[1] * 6, 2, 0, 1, 1, 2]


@pytest.mark.parametrize("order", list(DreamOrder))
def test_frozen_text_stays_where_it_is(order: DreamOrder) -> None:
    params = RequestParams(temperature=0.5, block_length=3, seed=2, strategy=DreamSchedule(order))
    prompt = InfillPrompt(((3, 1, 4), Hole(4), (15, 9), Hole(3), (2, 6)))
    canvas = finished(run(tiny_engine(PATH), Request(prompt, params))).outputs[0].canvas
    assert canvas[:3] == (3, 1, 4)
    assert canvas[7:9] == (15, 9)
    assert canvas[12:] == (2, 6)
    assert 96 not in canvas


def test_a_warm_order_draws_positions_in_proportion_to_their_weights() -> None:
    """One position of four is drawn; over many seeds as often as softmax(score / heat) says."""
    engine = tiny_engine(PATH, early_end=False, max_waiting_rows=4096)
    params = RequestParams(
        max_new_tokens=4, block_length=4, steps=3, strategy=DreamSchedule(DreamOrder.ENTROPY, 0.5)
    )
    first = torch.zeros(4)
    for seed in range(600):
        seeded = dataclasses.replace(params, seed=seed)
        add(engine, seed, Request(TokensPrompt((8, 9)), seeded, granularity=Granularity.STEPS))
    for events in run_all(engine).values():
        (position, _, _), *rest = trajectory(events)[0]
        assert not rest
        first[position - 2] += 1
    canvas = torch.tensor([8, 9, 96, 96, 96, 96])
    layout = AttentionLayout.of_lengths([6], [FULL])
    logits = engine.model.logits(canvas, torch.arange(6), layout, torch.arange(1, 5))
    scores = -torch.special.entr(logits[:, :96].softmax(-1)).sum(-1)
    expected = (scores / 0.5).softmax(0) * 600
    # chi-square with 3 degrees of freedom: 16.3 is passed once in a thousand
    assert ((first - expected) ** 2 / expected).sum() < 16.3
