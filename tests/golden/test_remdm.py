"""ReMDM against its reference, with the reference's coins; and what a service adds to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tools import GOLDEN, finished, run, same_in_company, tiny_engine
from vdiff_grpc.engine.decoding.remdm import Chances, chances
from vdiff_grpc.engine.events import Event, StepUpdate, UpdateKind
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import FixedSchedule, Remdm, RemdmMode
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

CASES = [
    pytest.param(case, id=case["id"])
    for case in json.loads((GOLDEN / "remdm.json").read_text())["cases"]
]
_NEVER_DRAWN = 7  # what the noise asks for where the most likely token must be taken


class FedNoise(CounterNoise):
    """The reference's coins and, above temperature 0, the tokens that it drew."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._coins = case["rand"]
        self._tokens = [{p: t for p, t, _ in step} for step in case["steps"]]
        self._removals = noise_removals(case)

    def order_uniforms(self, rows: NoiseRows) -> np.ndarray:
        found = []
        for step, position in zip(rows.steps, rows.positions, strict=True):
            begin, coins = self._coins[step]
            found.append(coins[position - begin])
        return np.array(found, dtype=np.float32)

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        exponentials = torch.ones(len(rows.steps), vocab_size)
        for i, (step, position) in enumerate(zip(rows.steps, rows.positions, strict=True)):
            token = self._tokens[step].get(position)
            if step in self._removals:
                token = _NEVER_DRAWN
            if token is not None:
                exponentials[i, token] = 1e-38
        return exponentials.to(device)


def noise_removals(case: dict[str, Any]) -> set[int]:
    """Steps that are the call after the last one of a block."""
    given = case["params"]
    begins = [begin for begin, _ in case["rand"]]
    last = {begin: step for step, begin in enumerate(begins)}
    return {step for begin, step in last.items() if begins.count(begin) > given["steps"]}


def params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    blocks = given["gen_length"] // given["block_length"]
    mode = RemdmMode(given["sampler"].removeprefix("remdm-"))
    named = {
        RemdmMode.CAP: ("eta",),
        RemdmMode.RESCALE: ("eta",),
        RemdmMode.CONF: (),
        RemdmMode.LOOP: ("eta", "t_on", "t_off", "alpha_on"),
    }
    return RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        steps=given["steps"] * blocks,
        temperature=given["temperature"],
        seed=0,
        strategy=Remdm(mode, **{name: given[name] for name in named[mode]}),
    )


def by_step(events: list[Event], kind: UpdateKind) -> dict[int, StepUpdate]:
    return {e.step: e for e in events if isinstance(e, StepUpdate) and e.kind is kind}


@pytest.mark.parametrize("case", CASES)
def test_it_fills_and_masks_again_what_the_reference_does(case: dict[str, Any]) -> None:
    engine = tiny_engine(GOLDEN / case["checkpoint"], noise=FedNoise(case), early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params(case)))
    filled, remasked = by_step(events, UpdateKind.UNMASK), by_step(events, UpdateKind.REMASK)
    for step, (fills, remasks) in enumerate(zip(case["steps"], case["remasked"], strict=True)):
        ours = filled.get(step)
        expected = [(p, t) for p, t, _ in fills]
        assert (list(zip(ours.positions, ours.token_ids, strict=True)) if ours else []) == expected
        confidences = list(ours.confidences) if ours else []
        assert confidences == pytest.approx([c for *_, c in fills], abs=1e-4)
        assert (list(remasked[step].positions) if step in remasked else []) == remasks
    output = finished(events).outputs[0]
    assert output.steps == len(case["steps"])
    assert output.remasked == sum(map(len, case["remasked"]))
    assert list(output.canvas) == case["final"]


def test_every_mode_is_recorded_with_remasks_and_the_last_call_too() -> None:
    recorded = [case.values[0] for case in CASES]
    for mode in RemdmMode:
        mine = [c for c in recorded if c["params"]["sampler"] == f"remdm-{mode.value}"]
        assert sum(any(c["remasked"]) for c in mine) >= 2
    removals = [c for c in recorded if noise_removals(c)]
    assert {c["params"]["temperature"] for c in removals} == {0, 1}
    for case in removals:
        tokens = {t for step in noise_removals(case) for _, t, _ in case["steps"][step]}
        assert _NEVER_DRAWN not in tokens


def strategy(mode: RemdmMode, **given: float) -> Remdm:
    found = Remdm(mode, **given).resolved()
    assert isinstance(found, Remdm)
    return found


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("mode", list(RemdmMode))
def test_every_chance_is_a_probability(mode: RemdmMode, eta: float, steps: int) -> None:
    for limits in ({}, {"t_on": 1.0, "t_off": 0.0, "alpha_on": 1.0}, {"t_on": 0.0, "t_off": 1.0}):
        for step in range(steps):
            given = chances(strategy(mode, eta=eta, **limits), step, steps)
            assert 0 <= given.sigma <= 1
            assert 0 <= given.fill <= 1 + 1e-9


def test_the_visible_share_follows_the_schedule_whatever_sigma() -> None:
    """Each step leaves as many tokens as the schedule has, on average."""
    for mode, eta in ((RemdmMode.CAP, 0.0), (RemdmMode.CAP, 0.3), (RemdmMode.RESCALE, 0.7)):
        visible = 0.0
        for step in range(10):
            given = chances(strategy(mode, eta=eta), step, 10)
            visible += (1 - visible) * given.fill - visible * given.sigma
            assert visible == pytest.approx((step + 1) / 10, abs=2e-5)


def test_the_loop_keeps_its_share_and_the_rest_is_filled_evenly() -> None:
    loop = strategy(RemdmMode.LOOP, eta=0.02, t_on=0.55, t_off=0.05, alpha_on=0.9)
    visible, seen = 0.0, []
    for step in range(1000):
        given = chances(loop, step, 1000)
        visible += (1 - visible) * given.fill - visible * given.sigma
        seen.append(visible)
    assert seen[449] == pytest.approx(0.9, abs=5e-3)
    assert seen[500:949] == pytest.approx([0.9] * 449, abs=5e-3)
    assert seen[-1] == pytest.approx(1.0, abs=1e-3)


def test_without_eta_nothing_is_masked_again() -> None:
    given = chances(strategy(RemdmMode.CAP, eta=0.0), 3, 8)
    assert given == Chances(pytest.approx(0.2, abs=1e-5), 0.0)


def request(
    mode: RemdmMode, *, heat: float = 0.0, scale: float = 0.0, seed: int = 1, **more: Any
) -> Request:
    asked = RequestParams(
        max_new_tokens=12,
        block_length=6,
        steps=20,
        temperature=heat,
        cfg_scale=scale,
        seed=seed,
        strategy=Remdm(mode, eta=None if mode is RemdmMode.CONF else 0.3),
        **more,
    )
    return Request(TokensPrompt((4, 8, 15)), asked, granularity=Granularity.STEPS)


def test_alone_and_in_company_are_the_same() -> None:
    asked = [
        request(mode, heat=heat, scale=scale, seed=seed)
        for seed, (mode, heat, scale) in enumerate(
            (m, h, s) for m in RemdmMode for h in (0.0, 1.0) for s in (0.0, 1.5)
        )
    ]
    plain = RequestParams(max_new_tokens=9, block_length=3, strategy=FixedSchedule())
    asked.insert(3, Request(TokensPrompt((1, 2)), plain, granularity=Granularity.STEPS))
    engine = tiny_engine()
    alone = same_in_company(engine, asked)
    assert sum(finished(events).outputs[0].remasked > 0 for events in alone.values()) >= 12


def test_only_the_active_block_is_masked_again() -> None:
    events = run(tiny_engine(early_end=False), request(RemdmMode.CAP, seed=5))
    block_of = {position: (position - 3) // 6 for position in range(3, 15)}
    remasks = [e for e in events if isinstance(e, StepUpdate) and e.kind is UpdateKind.REMASK]
    assert remasks
    assert all(block_of[p] == e.block for e in remasks for p in e.positions)


def test_a_full_block_is_not_left_before_its_steps_are_over() -> None:
    """All is filled in the first step; what comes after may still mask it again."""
    loop = Remdm(RemdmMode.LOOP, eta=0.2, t_on=0.9, t_off=0.0, alpha_on=1.0)
    asked = RequestParams(max_new_tokens=8, block_length=8, steps=8, seed=2, strategy=loop)
    one = Request(TokensPrompt((3,)), asked, granularity=Granularity.STEPS)
    events = run(tiny_engine(early_end=False), one)
    output = finished(events).outputs[0]
    assert len(by_step(events, UpdateKind.UNMASK)[0].positions) == 8
    assert output.steps >= 8
    assert output.remasked > 0


def test_frozen_positions_are_never_masked_again() -> None:
    prompt = InfillPrompt(((7, 7, 3), Hole(5), (3, 4, 5), Hole(4), (9,)))
    asked = RequestParams(block_length=9, steps=30, seed=4, strategy=Remdm(RemdmMode.CAP, eta=0.5))
    one = Request(prompt, asked, granularity=Granularity.STEPS)
    engine = tiny_engine()
    events = run(engine, one)
    output = finished(events).outputs[0]
    assert output.remasked > 0
    canvas = output.canvas
    assert (canvas[:3], canvas[8:11], canvas[15:]) == ((7, 7, 3), (3, 4, 5), (9,))
    assert engine.info.mask_token_id not in canvas


def test_more_steps_than_positions_and_one_position_blocks() -> None:
    one = request(RemdmMode.RESCALE)
    asked = dataclasses.replace(one.params, max_new_tokens=3, block_length=1, steps=12)
    output = finished(run(tiny_engine(early_end=False), dataclasses.replace(one, params=asked)))
    assert output.outputs[0].steps >= 12


def test_a_loop_that_shows_everything_fills_everything() -> None:
    """t stands one unit in the last place above t_on: nothing is left, by the formula."""
    loop = Remdm(RemdmMode.LOOP, t_on=0.3333399999999999, t_off=0.0, alpha_on=1.0)
    resolved = loop.resolved()
    assert isinstance(resolved, Remdm)
    assert [chances(resolved, step, 3).fill for step in range(3)][-1] == 1.0
