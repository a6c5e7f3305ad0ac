"""LLaDA2.1's editing against its own generate, and beyond what that has: infill, guidance."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, add, finished, run, run_all, tiny_engine
from vdiff_grpc.engine.events import Event, StepUpdate, UpdateKind
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, Editing, FixedSchedule
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

CASES = [
    pytest.param(case, id=case["id"])
    for case in json.loads((GOLDEN / "llada2_editing.json").read_text())["cases"]
]
LLADA2 = GOLDEN / "tiny-llada2"


def params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    return RequestParams(
        max_new_tokens=given["gen_length"],
        strategy=Editing(given["threshold"], given["editing_threshold"], given["max_post_steps"]),
    )


def updates(events: list[Event], kind: UpdateKind) -> dict[int, StepUpdate]:
    return {
        e.step: e
        for e in events
        if isinstance(e, StepUpdate) and e.kind is kind and len(e.positions)
    }


def check_changes(ours: dict[int, StepUpdate], theirs: list[list[tuple[int, int, float]]]) -> None:
    for step, expected in enumerate(theirs):
        update = ours.pop(step, None)
        found = list(zip(update.positions, update.token_ids, strict=True)) if update else []
        assert found == [(p, t) for p, t, _ in expected], f"step {step}"
        confidences = list(update.confidences) if update else []
        assert confidences == pytest.approx([c for *_, c in expected], abs=1e-4)
    assert not ours


@pytest.mark.parametrize("case", CASES)
def test_it_fills_and_replaces_what_the_reference_does(case: dict[str, Any]) -> None:
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params(case)))
    check_changes(updates(events, UpdateKind.UNMASK), case["steps"])
    check_changes(updates(events, UpdateKind.REVISE), case["revised"])
    output = finished(events).outputs[0]
    assert output.forward_passes == output.steps == case["forwards"]
    assert output.revised == sum(map(len, case["revised"]))
    assert list(output.canvas) == case["final"]


def test_what_is_recorded_has_edits_and_every_end_of_a_block() -> None:
    recorded = [case.values[0] for case in CASES]
    assert sum(any(case["revised"]) for case in recorded) >= 8
    together = [  # a step that fills and replaces
        case
        for case in recorded
        if any(f and e for f, e in zip(case["steps"], case["revised"], strict=True))
    ]
    assert len(together) >= 3
    ends = {
        "none" if not limit else "limit" if made == limit else "rest"
        for case in recorded
        for limit in [case["params"]["max_post_steps"]]
        for made in case["post_steps"]
    }
    assert ends == {"none", "limit", "rest"}
    assert any(1 in case["post_steps"] for case in recorded)  # a look that changes nothing


def request(
    strategy: Editing, *, length: int = 20, heat: float = 0.0, scale: float = 0.0, seed: int = 1
) -> Request:
    asked = RequestParams(
        max_new_tokens=length,
        block_length=8,
        temperature=heat,
        cfg_scale=scale,
        seed=seed,
        strategy=strategy,
    )
    return Request(TokensPrompt((4, 8, 15)), asked, granularity=Granularity.STEPS)


@pytest.mark.parametrize("checkpoint", ["tiny-llada2", "tiny-llada-moe", "tiny-llada"])
def test_alone_and_in_company_are_the_same(checkpoint: str) -> None:
    asked = [
        request(Editing(threshold, edit, 5), heat=heat, scale=scale, seed=seed)
        for seed, (threshold, edit, heat, scale) in enumerate(
            (t, e, h, s)
            for t, e in ((0.9, 0.3), (0.2, 0.1))
            for h in (0.0, 1.0)
            for s in (0.0, 1.5)
        )
    ]
    for other in (FixedSchedule(), ConfidenceThreshold(0.5)):
        plain = RequestParams(max_new_tokens=9, strategy=other)
        asked.insert(3, Request(TokensPrompt((1, 2)), plain, granularity=Granularity.STEPS))
    engine = tiny_engine(GOLDEN / checkpoint, early_end=False)
    alone = [run(engine, one) for one in asked]
    for key, one in enumerate(asked):
        add(engine, key, one)
    together = run_all(engine)
    for key, events in enumerate(alone):
        assert together[key][:-1] == events[:-1]
    assert sum(finished(events).outputs[0].revised > 0 for events in alone) >= 4


def test_only_the_active_block_is_replaced_and_every_token_at_most_once_a_step() -> None:
    events = run(tiny_engine(LLADA2, early_end=False), request(Editing(0.3, 0.1)))
    found = updates(events, UpdateKind.REVISE)
    assert found
    for update in found.values():
        assert len({p // 8 for p in update.positions}) == 1
        assert len(set(update.positions)) == len(update.positions)
        assert min(update.positions) >= 3, "the prompt's end lies in the first block"


@pytest.mark.parametrize("checkpoint", ["tiny-llada2", "tiny-llada"])
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_block_gets_no_more_further_steps_than_asked(checkpoint: str, limit: int) -> None:
    """At a threshold of 0 one step fills a block; what follows are further steps."""
    engine = tiny_engine(GOLDEN / checkpoint, early_end=False)
    events = run(engine, request(Editing(0.0, 0.0, limit), length=8))
    output = finished(events).outputs[0]
    assert output.steps <= output.blocks * (1 + limit)
    if limit == 0:
        assert (output.steps, output.revised) == (output.blocks, 0)


def test_nothing_is_replaced_where_nothing_is_surer_than_certain() -> None:
    """Each block ends with one look that changes nothing."""
    one = request(Editing(0.0, 1.0, 16), length=13)
    output = finished(run(tiny_engine(LLADA2, early_end=False), one)).outputs[0]
    assert (output.revised, output.steps) == (0, 2 * output.blocks)


def test_frozen_text_is_never_replaced() -> None:
    prompt = InfillPrompt(((7, 7, 3), Hole(5), (3, 4, 5), Hole(4), (9,)))
    asked = RequestParams(block_length=9, strategy=Editing(0.2, 0.0, 6))
    output = finished(run(tiny_engine(early_end=False), Request(prompt, asked))).outputs[0]
    assert output.revised > 0
    canvas = output.canvas
    assert (canvas[:3], canvas[8:11], canvas[15:]) == ((7, 7, 3), (3, 4, 5), (9,))
    assert 96 not in canvas
