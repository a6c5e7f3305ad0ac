"""LocalLeap against its reference; and what a service adds to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from tests.engine.tools import GOLDEN, finished, run, same_in_company, tiny_engine, trajectory
from vdiff_grpc.engine.decoding.local_leap import LocalLeapRule
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, LocalLeap
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

RECORDED: list[dict[str, Any]] = json.loads((GOLDEN / "local_leap.json").read_text())["cases"]
CASES = [pytest.param(case, id=case["id"]) for case in RECORDED]


@pytest.mark.parametrize("case", CASES)
def test_local_leap_commits_what_the_reference_commits(case: dict[str, Any]) -> None:
    given = case["params"]
    asked = RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        temperature=0.0,
        strategy=LocalLeap(given["threshold"], given["relaxed_threshold"], given["radius"]),
    )
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), asked))
    ours, theirs = trajectory(events), case["steps"]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    assert list(finished(events).outputs[0].canvas) == case["final"]
    assert finished(events).outputs[0].forward_passes == case["forwards"]


def test_the_recorded_cases_have_leaps_and_steps_without_an_anchor() -> None:
    assert len(RECORDED) >= 8
    leaps, forced = 0, 0
    for case in RECORDED:
        for anchors, step in zip(case["anchors"], case["steps"], strict=True):
            leaps += len(step) - len(anchors) if anchors else 0
            forced += not anchors
    assert leaps >= 50
    assert forced >= 50


def taken(confidences: list[list[float]], positions: list[list[int]], radius: int) -> list[int]:
    """What is filled of hand-made rows, at thresholds 0.9 and 0.5."""
    segments = torch.tensor([row for row, line in enumerate(positions) for _ in line])
    flat = torch.tensor([position for line in positions for position in line])
    count = len(flat)
    group = Group((), segments, torch.tensor([[0.9, 0.5, radius]] * len(positions)))
    none = torch.zeros(count, dtype=torch.int64)
    confidence = torch.tensor([number for line in confidences for number in line])
    candidates = Candidates(
        logits=torch.zeros(count, 3),
        normaliser=torch.zeros(count),
        token_ids=none,
        confidence=confidence,
        order=torch.zeros(count),
        status=none,
        current=none,
        positions=flat,
        variants=none,
    )
    actions = LocalLeapRule().select(group, candidates)
    return torch.nonzero(actions).squeeze(1).tolist()


def test_the_radius_counts_canvas_positions_and_both_ends_belong_to_it() -> None:
    confidences = [0.6, 0.6, 0.95, 0.6, 0.6]
    assert taken([confidences], [[0, 1, 3, 5, 6]], radius=2) == [1, 2, 3]


def test_a_neighbour_that_leaps_is_no_anchor() -> None:
    assert taken([[0.95, 0.6, 0.6, 0.6]], [[0, 1, 2, 3]], radius=1) == [0, 1]


def test_without_an_anchor_only_the_best_is_taken() -> None:
    assert taken([[0.6, 0.7, 0.89]], [[4, 5, 6]], radius=9) == [2]


def test_an_anchor_has_no_neighbours_in_another_row() -> None:
    rows = [[0.1, 0.95], [0.6, 0.7, 0.2]]
    assert taken(rows, [[7, 8], [7, 8, 9]], radius=1024) == [1, 3]


def company() -> list[Request]:
    asked = RequestParams(
        max_new_tokens=14, block_length=7, seed=3, strategy=LocalLeap(0.6, 0.2, 2)
    )
    holes = InfillPrompt(((7, 7, 3), Hole(5), (3, 4, 5), Hole(4), (9,)))
    requests = [
        Request(TokensPrompt((4, 8, 15)), asked),
        Request(TokensPrompt((4, 8, 15)), dataclasses.replace(asked, temperature=1.0, seed=1)),
        Request(
            TokensPrompt((1, 2)), dataclasses.replace(asked, strategy=ConfidenceThreshold(0.3))
        ),
        Request(TokensPrompt((5,)), dataclasses.replace(asked, cfg_scale=1.5)),
        Request(holes, dataclasses.replace(asked, max_new_tokens=None, block_length=9)),
        Request(
            TokensPrompt(tuple(range(30))),
            dataclasses.replace(asked, n=2, strategy=LocalLeap(0.9, 0.1, 8)),
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


@pytest.mark.parametrize("checkpoint", ["tiny-dream", "tiny-sdar"])
def test_it_works_with_a_shift_and_with_cached_blocks(checkpoint: str) -> None:
    engine = tiny_engine(GOLDEN / checkpoint, early_end=False)
    asked = RequestParams(max_new_tokens=12, block_length=4, strategy=LocalLeap(0.3, 0.05, 4))
    output = finished(run(engine, Request(TokensPrompt((5, 6, 7)), asked))).outputs[0]
    assert engine.info.mask_token_id not in output.canvas
    assert output.steps < 12
