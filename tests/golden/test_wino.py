"""WINO against its reference; and what a service adds to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, add, change, finished, run, same_in_company, tiny_engine
from vdiff_grpc.engine.decoding.rule import Action
from vdiff_grpc.engine.decoding.wino import WinoRule
from vdiff_grpc.engine.events import Event, StepUpdate, UpdateKind
from vdiff_grpc.engine.packing import pack
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import ConfidenceThreshold, Wino
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

RECORDED: list[dict[str, Any]] = json.loads((GOLDEN / "wino.json").read_text())["cases"]
CASES = [pytest.param(case, id=case["id"]) for case in RECORDED]


def by_step(events: list[Event], kind: UpdateKind) -> dict[int, StepUpdate]:
    return {e.step: e for e in events if isinstance(e, StepUpdate) and e.kind is kind}


@pytest.mark.parametrize("case", CASES)
def test_wino_fills_and_masks_again_what_the_reference_does(case: dict[str, Any]) -> None:
    given = case["params"]
    asked = RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        temperature=0.0,
        strategy=Wino(given["threshold"], given["threshold_back"]),
    )
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), asked))
    filled, remasked = by_step(events, UpdateKind.UNMASK), by_step(events, UpdateKind.REMASK)
    for step, (fills, remasks) in enumerate(zip(case["steps"], case["remasked"], strict=True)):
        ours = filled[step]
        assert list(zip(ours.positions, ours.token_ids, strict=True)) == [
            (p, t) for p, t, _ in fills
        ]
        assert list(ours.confidences) == pytest.approx([c for *_, c in fills], abs=1e-4)
        assert (list(remasked[step].positions) if step in remasked else []) == remasks
    output = finished(events).outputs[0]
    assert output.steps == output.forward_passes == case["forwards"]
    assert output.remasked == sum(map(len, case["remasked"]))
    assert list(output.canvas) == case["final"]


def test_the_recorded_cases_mask_again_and_meet_both_limits() -> None:
    assert len(RECORDED) >= 8
    assert all(any(case["remasked"]) for case in RECORDED)
    full, held_back = 0, 0
    for case in RECORDED:
        length = case["params"]["block_length"]
        masked = filled = 0
        for fills, remasks, doubtful in zip(
            case["steps"], case["remasked"], case["doubtful"], strict=True
        ):
            if not masked:  # a block begins
                masked, filled = length, 30
            most = min(max(masked * 7 // 10, 5), 20)
            assert len(fills) <= most
            assert len(remasks) < filled
            full += len(fills) == most < masked
            held_back += len(fills) > 1 and len(remasks) < len(doubtful)
            masked, filled = masked - len(fills) + len(remasks), len(fills)
    assert full >= 5
    assert held_back >= 5


HOLES = ((7, 7, 3), Hole(5), (3, 4, 5), Hole(4), (9,))


def row(prompt: TokensPrompt | InfillPrompt, asked: RequestParams) -> Sequence:
    engine = tiny_engine()
    request = resolve(Request(prompt, asked), engine.info, engine.limits, engine.tokenizer)
    one = Sequence(1, request, 0, engine.info, None)
    WinoRule().begin(one)
    return one


def test_a_shadow_stands_for_each_position_of_the_block_even_over_two_holes() -> None:
    one = row(InfillPrompt(HOLES), RequestParams(block_length=9, cfg_scale=1.0, strategy=Wino()))
    block = [3, 4, 5, 6, 7, 11, 12, 13, 14]
    change(one, Action.UNMASK, [4, 11], [20, 21])
    variant = WinoRule().plan(one)[0]
    assert variant.token_ids[16:].tolist() == [one.mask_token_id] * 9
    assert variant.position_ids.tolist() == [*range(16), *block]
    assert variant.rule.shadowed == tuple(block)
    assert variant.positions.tolist() == block
    heads = dict(zip(block, variant.heads.tolist(), strict=True))
    assert (heads[4], heads[11]) == (16 + 1, 16 + 5)
    assert all(heads[p] == p for p in block if p not in (4, 11))
    assert len(variant.token_ids) <= one.params.strategy.step_tokens(16, 9)
    twin = pack([one], [[variant]], 0).variants[1]
    given = [p for p in range(16) if p not in block]
    assert twin.token_ids[given].tolist() == [one.mask_token_id] * 7
    assert twin.token_ids[[4, 11]].tolist() == [20, 21]
    assert twin.token_ids[16:].tolist() == [one.mask_token_id] * 9


def test_without_anything_to_mask_again_no_shadow_is_computed() -> None:
    rule = WinoRule()
    one = row(TokensPrompt((1, 2)), RequestParams(max_new_tokens=6, strategy=Wino()))
    assert len(rule.plan(one)[0].token_ids) == 8  # nothing is filled yet
    change(one, Action.UNMASK, [2, 3], [5, 5])
    one.memory = 2
    assert len(rule.plan(one)[0].token_ids) == 8 + 6
    one.memory = 1  # fewer than one may be masked again
    assert len(rule.plan(one)[0].token_ids) == 8
    one.memory = 2
    change(one, Action.UNMASK, [4, 5, 6], [5, 5, 5])
    assert len(rule.plan(one)[0].token_ids) == 8  # the last mask is filled alone


def company() -> list[Request]:
    asked = RequestParams(max_new_tokens=14, block_length=7, seed=3, strategy=Wino(0.2, 0.9))
    requests = [
        Request(TokensPrompt((4, 8, 15)), asked),
        Request(TokensPrompt((4, 8, 15)), dataclasses.replace(asked, temperature=1.0, seed=1)),
        Request(
            TokensPrompt((1, 2)), dataclasses.replace(asked, strategy=ConfidenceThreshold(0.3))
        ),
        Request(TokensPrompt((5,)), dataclasses.replace(asked, cfg_scale=1.5)),
        Request(
            InfillPrompt(HOLES), dataclasses.replace(asked, max_new_tokens=None, block_length=9)
        ),
        Request(TokensPrompt(tuple(range(30))), dataclasses.replace(asked, n=2, max_new_tokens=33)),
    ]
    return [dataclasses.replace(request, granularity=Granularity.STEPS) for request in requests]


def test_alone_and_in_company_are_the_same() -> None:
    engine = tiny_engine(early_end=False)
    alone = same_in_company(engine, company())
    assert sum(finished(events).outputs[0].remasked > 0 for events in alone.values()) >= 4


def test_frozen_positions_are_never_masked_again() -> None:
    engine = tiny_engine(early_end=False)
    remasked = 0
    for seed in range(6):
        asked = RequestParams(block_length=9, temperature=1.0, seed=seed, strategy=Wino(0.05, 1.0))
        events = run(engine, Request(InfillPrompt(HOLES), asked))
        output = finished(events).outputs[0]
        canvas = output.canvas
        assert (canvas[:3], canvas[8:11], canvas[15:]) == ((7, 7, 3), (3, 4, 5), (9,))
        assert engine.info.mask_token_id not in canvas
        remasked += output.remasked
    assert remasked > 0


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_block_ends_within_as_many_steps_as_it_has_positions(
    temperature: float, scale: float
) -> None:
    """Even when everything is accepted and nothing confirmed; the last block is shorter."""
    engine = tiny_engine(early_end=False)
    asked = RequestParams(
        max_new_tokens=26,
        block_length=10,
        temperature=temperature,
        cfg_scale=scale,
        seed=2,
        strategy=Wino(0.0, 1.0),
    )
    events = run(engine, Request(TokensPrompt((4, 8)), asked))
    output = finished(events).outputs[0]
    assert output.remasked > 0
    assert output.steps <= 26
    assert output.forward_passes == output.steps * (2 if scale else 1)
    steps = {e.step: e.block for e in events if isinstance(e, StepUpdate)}
    counts = [list(steps.values()).count(block) for block in range(3)]
    assert all(count <= most for count, most in zip(counts, (10, 10, 6), strict=True))


def test_an_answer_is_told_only_when_its_block_cannot_change_any_more() -> None:
    engine = tiny_engine(early_end=False)
    asked = RequestParams(max_new_tokens=16, block_length=8, strategy=Wino(0.2, 0.9))
    add(engine, 1, Request(TokensPrompt((4, 8, 15)), asked))
    texts = 0
    while engine.has_work:
        (running,) = engine.scheduler.running or engine.scheduler.waiting
        told = running.text.num_pushed
        engine.step()
        if running.text.num_pushed != told:
            assert (running.text.num_pushed - told) % 8 == 0
            texts += 1
    assert texts == 2
