"""Drafts change how many calls an answer takes, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, finished, run, same_in_company, tiny_engine
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Committed, Event, Finished, StepUpdate
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, FreeDave
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

CASES = [
    pytest.param(case, id=case["id"])
    for case in json.loads((GOLDEN / "freedave.json").read_text())["cases"]
]
STOPS = tuple(range(0, 94, 6))  # so many that random weights meet one


def run_counting(engine: Engine, request: Request) -> tuple[list[Event], int]:
    """Every event, and how many engine steps it took."""
    before = engine.statistics.engine_steps
    events = run(engine, request)
    return events, engine.statistics.engine_steps - before


def by_output(events: list[Event]) -> list[Event]:
    """Outputs one after the other: how their events mingle depends on the calls they take."""
    return sorted(events, key=lambda event: getattr(event, "output_index", 99))


def check_same(plain: list[Event], drafted: list[Event]) -> None:
    """The same logical steps of each output, but for the forward passes that they took."""
    for one, other in zip(by_output(plain), by_output(drafted), strict=True):
        assert type(one) is type(other)
        if isinstance(one, StepUpdate) and isinstance(other, StepUpdate):
            assert other.confidences == pytest.approx(one.confidences, abs=1e-5)
            without = {"forward_passes": 0, "confidences": ()}
            assert dataclasses.replace(other, **without) == dataclasses.replace(one, **without)
        elif isinstance(one, Committed) and isinstance(other, Committed):
            assert other.tokens.confidences == pytest.approx(one.tokens.confidences, abs=1e-5)
            tokens = dataclasses.replace(other.tokens, confidences=one.tokens.confidences)
            assert dataclasses.replace(other, tokens=tokens) == one
        elif isinstance(one, Finished) and isinstance(other, Finished):
            for ours, theirs in zip(one.outputs, other.outputs, strict=True):
                assert theirs.canvas == ours.canvas
                assert (theirs.text, theirs.finish_reason) == (ours.text, ours.finish_reason)
                assert (theirs.steps, theirs.blocks) == (ours.steps, ours.blocks)
                assert theirs.tokens.ids == ours.tokens.ids


def with_strategy(request: Request, strategy: FixedSchedule | FreeDave) -> Request:
    asked = dataclasses.replace(request.params, strategy=strategy)
    return dataclasses.replace(request, params=asked, granularity=Granularity.STEPS)


@pytest.mark.parametrize("case", CASES)
def test_it_takes_the_calls_that_the_reference_takes(case: dict[str, Any]) -> None:
    """One token a step, as there; `draft_steps` counts the canvas among the drafts."""
    given = case["params"]
    asked = RequestParams(
        max_new_tokens=given["max_gen_length"],
        block_length=given["block_length"],
        steps=given["decoding_steps"],
        strategy=FreeDave(given["draft_steps"] - 1),
    )
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    prompt = TokensPrompt(tuple(case["prompt"]))
    events, calls = run_counting(engine, Request(prompt, asked))
    assert calls == case["forwards"] < case["static_forwards"]
    told = [
        [list(line) for line in zip(e.positions, e.token_ids, strict=True)]
        for e in events
        if isinstance(e, StepUpdate)
    ]
    assert told == [[line[:2] for line in step] for step in case["steps"]]
    assert list(finished(events).outputs[0].canvas) == case["final"]


def requests(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        prompt = tuple(rng.randrange(94) for _ in range(rng.randint(1, 20)))
        length = rng.choice([1, 4, 13, 24])
        block = rng.choice([1, 5, 8, 24])
        asked = RequestParams(
            max_new_tokens=length,
            block_length=min(block, length),
            steps=rng.randint(-(-length // min(block, length)), length),
            temperature=rng.choice([0.0, 1.0]),
            top_p=rng.choice([1.0, 0.8]),
            cfg_scale=rng.choice([0.0, 1.0]),
            seed=rng.randrange(2**32),
            n=rng.choice([1, 1, 2]),
            ignore_eos=rng.random() < 0.5,
        )
        given: TokensPrompt | InfillPrompt = TokensPrompt(prompt)
        if i % 4 == 3:
            given = InfillPrompt((prompt, Hole(7), (3, 4, 5), Hole(2), (9,)))
            asked = dataclasses.replace(asked, max_new_tokens=None, block_length=4, steps=None)
        found.append(Request(given, asked))
    return found


@pytest.mark.parametrize("drafts", [1, 4, 32])
def test_the_answer_is_the_fixed_schedules_answer(drafts: int) -> None:
    engine = tiny_engine()
    saved = 0
    for request in requests(16, seed=drafts):
        plain, many = run_counting(engine, with_strategy(request, FixedSchedule()))
        drafted, few = run_counting(engine, with_strategy(request, FreeDave(drafts)))
        check_same(plain, drafted)
        assert few <= many
        saved += many - few
    assert saved >= 5, "drafts that never hold show nothing"


@pytest.mark.parametrize("checkpoint", ["tiny-dream", "tiny-sdar"])
def test_so_it_is_with_a_shift_and_with_cached_blocks(checkpoint: str) -> None:
    engine = tiny_engine(GOLDEN / checkpoint)
    saved = 0
    for seed in range(4):
        asked = RequestParams(
            max_new_tokens=14,
            block_length=7 if checkpoint == "tiny-dream" else None,
            temperature=float(seed % 2),
            cfg_scale=float(seed // 2),
            seed=seed,
        )
        request = Request(TokensPrompt(tuple(range(5, 11 + seed))), asked)
        plain, many = run_counting(engine, with_strategy(request, FixedSchedule()))
        drafted, few = run_counting(engine, with_strategy(request, FreeDave(3)))
        check_same(plain, drafted)
        saved += many - few
    assert saved > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_save_calls_at_any_temperature(temperature: float) -> None:
    engine = tiny_engine(early_end=False)
    calls = {}
    for strategy in (FixedSchedule(), FreeDave(4)):
        asked = RequestParams(
            max_new_tokens=24, block_length=24, temperature=temperature, seed=11, strategy=strategy
        )
        calls[strategy] = sum(
            run_counting(engine, Request(TokensPrompt((seed, 17, 9)), asked))[1]
            for seed in range(3)
        )
    assert calls[FreeDave(4)] < 0.9 * calls[FixedSchedule()]


def test_in_company_too() -> None:
    company = [
        with_strategy(request, FreeDave(1 + i % 5)) for i, request in enumerate(requests(9, 5))
    ]
    threshold = RequestParams(
        max_new_tokens=16,
        block_length=8,
        temperature=1.0,
        strategy=ConfidenceThreshold(0.5),
        seed=1,
    )
    company.insert(2, Request(TokensPrompt((5, 6)), threshold, granularity=Granularity.STEPS))
    engine = tiny_engine(max_running_rows=7)
    alone = same_in_company(engine, company)
    for key, request in enumerate(company):
        if key != 2:
            plain = run(engine, with_strategy(request, FixedSchedule()))
            check_same(plain, alone[key])


def test_forward_passes_count_every_draft() -> None:
    """The first call of a block has none; in a block of two steps no draft is possible."""
    engine = tiny_engine(early_end=False)
    for steps, drafts, forwards in ((1, 4, 1), (2, 4, 2), (3, 4, None)):
        asked = RequestParams(
            max_new_tokens=6, block_length=6, steps=steps, strategy=FreeDave(drafts)
        )
        events = run(engine, Request(TokensPrompt((40, 41)), asked))
        found = finished(events).outputs[0].forward_passes
        if forwards is not None:
            assert found == forwards
        else:  # canvas; canvas and one draft; and the last step, unless the draft held
            assert found in (3, 4)


def test_an_answer_that_ends_early_ends_at_the_same_step() -> None:
    """Steps that a call has verified past the answer's end are not told."""
    engine = tiny_engine()
    ended = 0
    for seed in range(12):
        asked = RequestParams(
            max_new_tokens=12, block_length=12, temperature=1.0, seed=seed, stop_token_ids=STOPS
        )
        request = Request(TokensPrompt((seed, 3)), asked)
        plain = run(engine, with_strategy(request, FixedSchedule()))
        drafted = run(engine, with_strategy(request, FreeDave(6)))
        check_same(plain, drafted)
        ended += finished(plain).outputs[0].steps < 12
    assert ended >= 4
