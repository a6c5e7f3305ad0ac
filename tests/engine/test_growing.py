"""Holes that grow and shrink while they are filled: what is given stays, and limits hold."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tools import LogitsRecorder, add, change, finished, run, run_all, tiny_engine
from tests.growth import DELETE, EXPAND, growing_checkpoint
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.columns import Action
from vdiff_grpc.engine.constraints.kinds import RegexConstraint
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import (
    Committed,
    Event,
    Finished,
    FinishReason,
    LaidOut,
    StepUpdate,
    UpdateKind,
)
from vdiff_grpc.engine.growing import GrowingSequence, row_of
from vdiff_grpc.engine.growth_checks import most_steps
from vdiff_grpc.engine.likelihood import Scoring, begin_scoring
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, LengthChoice, TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.strategies import (
    AdaptiveConfidence,
    ConfidenceThreshold,
    DreamOrder,
    DreamSchedule,
    DynamicThreshold,
    EntropyBound,
    Factor,
    FixedSchedule,
    Klass,
    LeftToRight,
    Remdm,
)
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.errors import InvalidRequestError

Segment = str | tuple[int, ...] | Hole
MASK = 96

OPEN: tuple[Segment, ...] = (
    (5, 6, 7),
    Hole(min_length=2, max_length=9),
    (8, 9),
    Hole(3),
    Hole(max_length=16),
    (11,),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(growing_checkpoint(tmp_path_factory.mktemp("growing")))


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    statistics = engine.statistics
    assert statistics.running_rows == statistics.waiting_rows == statistics.cache_tokens == 0


def request(segments: tuple[Segment, ...] = OPEN, **params: Any) -> Request:
    return Request(InfillPrompt(segments), RequestParams(**{"seed": 3} | params))


def holes_of(asked: Request) -> Iterator[tuple[Hole, int]]:
    """Each hole and where it begins."""
    assert isinstance(asked.prompt, InfillPrompt)
    position = 0
    for segment in asked.prompt.segments:
        assert not isinstance(segment, str)
        if isinstance(segment, Hole):
            yield segment, position
        position += segment.longest if isinstance(segment, Hole) else len(segment)


def check(asked: Request, done: Finished) -> list[tuple[int, ...]]:
    """Given text stays, each hole is filled from its beginning, to a length in its range.

    Returns the lengths of every output's holes.
    """
    assert isinstance(asked.prompt, InfillPrompt)
    found = []
    for output in done.outputs:
        canvas, position = output.canvas, 0
        for segment in asked.prompt.segments:
            if isinstance(segment, tuple):
                assert canvas[position : position + len(segment)] == segment
            assert not isinstance(segment, str)
            position += segment.longest if isinstance(segment, Hole) else len(segment)
        assert position == len(canvas)
        lengths, filled = [], []
        for hole, begin in holes_of(asked):
            place = [p for p in output.tokens.positions if begin <= p < begin + hole.longest]
            assert place == list(range(begin, begin + len(place)))
            assert hole.shortest <= len(place) <= hole.longest
            rest = canvas[begin + len(place) : begin + hole.longest]
            assert set(rest) <= {MASK}
            lengths.append(len(place))
            filled += place
        assert list(output.tokens.positions) == filled
        assert [canvas[p] for p in filled] == list(output.tokens.ids)
        assert not {MASK, EXPAND} & set(output.tokens.ids)
        assert DELETE not in output.tokens.ids
        assert output.finish_reason is FinishReason.LENGTH
        longest = sum(hole.longest for hole, _ in holes_of(asked))
        assert output.steps <= most_steps(longest)
        assert output.remasked == output.revised == 0
        found.append(tuple(lengths))
    return found


GROWING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "n": 3},
    {"strategy": DreamSchedule(DreamOrder.MASKGIT_PLUS, 0.5), "temperature": 0.7, "top_p": 0.9},
    {"strategy": FixedSchedule(), "cfg_scale": 1.5, "top_logprobs": 3},
    {"strategy": ConfidenceThreshold(0.3), "temperature": 1.0},
    {"strategy": ConfidenceThreshold(1e-9), "temperature": 1.5, "seed": 8},
    {"strategy": Factor(5.0), "cfg_scale": 0.5, "temperature": 1.0},
    {"strategy": DynamicThreshold(0.4), "top_k": 20, "temperature": 1.0},
    {"strategy": EntropyBound(2.0), "ignore_eos": True},
    {"strategy": AdaptiveConfidence(0.2), "temperature": 0.8},
    {"best_of": 3, "temperature": 1.0},
]


@pytest.mark.parametrize("params", GROWING, ids=str)
def test_every_strategy_that_can_fills_holes_that_grow(
    engine: Engine, params: dict[str, Any]
) -> None:
    lengths = set[tuple[int, ...]]()
    for first in range(6):
        asked = request(((first, 6), *OPEN[1:]), **params)
        done = engine.generate(asked)
        lengths |= set(check(asked, done))
        assert done.completion_tokens == sum(len(o.tokens.ids) for o in done.candidates)
    assert {length for _, length, _ in lengths} == {3}
    assert len(lengths) > 1, "or nothing has grown"


def test_what_is_given_stays_and_holes_have_a_length_in_their_range(engine: Engine) -> None:
    rng, asked, lengths = random.Random(4), {}, set[int]()
    for key in range(30):
        segments: list[Segment] = []
        for _ in range(rng.randint(1, 4)):
            segments.append(tuple(rng.randrange(94) for _ in range(rng.randint(0, 4))))
            least = rng.randint(1, 7)
            variable = Hole(min_length=least, max_length=least + rng.randint(1, 12))
            segments += rng.choice([[variable], [variable], [variable, Hole(least)]])
        segments.append((key,))  # before it no end token leaves a hole short
        params = GROWING[key % len(GROWING)] | {"seed": key}
        asked[key] = request(tuple(segments), **params)
        add(engine, key, asked[key])
    for key, events in run_all(engine).items():
        assert not any(isinstance(event, LaidOut) for event in events)
        for found in check(asked[key], finished(events)):
            lengths |= set(found)
    assert len(lengths) > 8


def test_growth_is_the_same_in_any_company_to_the_last_bit(engine: Engine) -> None:
    requests = [request(**{"seed": number} | params) for number, params in enumerate(GROWING)]
    requests += [
        request(((9, 9), Hole(7), (4,)), temperature=1.0),
        request(hole_lengths=LengthChoice.CONFIDENCE),
        Request(TokensPrompt((1, 2, 3)), RequestParams(max_new_tokens=12, temperature=1.0, seed=2)),
    ]
    runner = engine.runner
    recorder = LogitsRecorder.install(engine)
    alone = {}
    for key, asked in enumerate(requests):
        add(engine, key, asked)
        alone[key] = run_all(engine)[key]
    logits_alone, recorder.seen = recorder.seen, defaultdict(list)
    together: dict[int, list[Event]] = defaultdict(list)
    for key in reversed(range(len(requests))):  # each joins while those before it are filled
        add(engine, key, requests[key])
        for owner, event in engine.step():
            together[owner].append(event)
    for owner, events in run_all(engine).items():
        together[owner] += events
    engine.runner = runner
    for key in alone:
        assert finished(together[key]).candidates == finished(alone[key]).candidates
    for row, seen in recorder.seen.items():
        assert all(torch.equal(a, b) for a, b in zip(seen, logits_alone[row], strict=True)), row


@pytest.mark.parametrize("stride", [1, 3])
def test_updates_lead_to_the_rows_own_canvas_and_committed_text_stays(
    engine: Engine, stride: int
) -> None:
    kinds = set[UpdateKind]()
    for seed in range(8):
        asked = request(seed=seed, temperature=1.0, strategy=FixedSchedule())
        asked = dataclasses.replace(asked, granularity=Granularity.STEPS, stride=stride)
        add(engine, 1, asked)
        events = run_all(engine)[1]
        output = finished(events).outputs[0]
        canvas = [
            MASK if p in set(output.tokens.positions) else t for p, t in enumerate(output.canvas)
        ]
        settled = dict[int, int]()
        for event in events:
            if isinstance(event, StepUpdate):
                kinds.add(event.kind)
                for position, token in zip(event.positions, event.token_ids, strict=True):
                    assert (canvas[position] == MASK) == (event.kind is UpdateKind.UNMASK)
                    assert (token == MASK) == (event.kind is UpdateKind.REMASK)
                    canvas[position] = token
            elif isinstance(event, Committed):
                settled |= zip(event.tokens.positions, event.tokens.ids, strict=True)
            if stride == 1:  # a longer one tells the text before its tokens
                assert all(canvas[position] == token for position, token in settled.items())
        assert canvas == list(output.canvas)
        assert settled == dict(zip(output.tokens.positions, output.tokens.ids, strict=True))
    assert kinds == set(UpdateKind), "or nothing has moved"


def test_a_trajectory_ends_at_the_final_canvas(engine: Engine) -> None:
    asked = dataclasses.replace(request(temperature=1.0, n=2), return_trajectory=True)
    for output in engine.generate(asked).outputs:
        canvas = list(output.canvas)
        for hole, begin in holes_of(asked):
            canvas[begin : begin + hole.longest] = [MASK] * hole.longest
        for update in output.trajectory:
            for position, token in zip(update.positions, update.token_ids, strict=True):
                canvas[position] = token
        assert canvas == list(output.canvas)
    long = dataclasses.replace(request(((1,), Hole(max_length=120))), return_trajectory=True)
    engine.resolve(dataclasses.replace(long, params=RequestParams(n=1)))
    with pytest.raises(InvalidRequestError, match="144000 positions"):
        engine.resolve(dataclasses.replace(long, params=RequestParams(n=2)))


def test_what_is_told_of_a_token_moves_with_it(engine: Engine) -> None:
    """At temperature 0 the most likely token of a position's own pass is the one it holds."""
    moved = 0
    for first in range(10):
        asked = request(((first, 1), *OPEN[1:]), strategy=FixedSchedule(), top_logprobs=2)
        events = run(engine, asked)
        output = finished(events).outputs[0]
        updates = [event for event in events if isinstance(event, StepUpdate)]
        moved += sum(event.kind is not UpdateKind.UNMASK for event in updates)
        tokens = output.tokens
        assert len(tokens.top_tokens) == len(tokens.ids)
        for token, confidence, top in zip(
            tokens.ids, tokens.confidences, tokens.top_tokens, strict=True
        ):
            assert top.ids[0] == token
            assert np.exp(top.logprobs[0]) == pytest.approx(confidence, abs=1e-5)
        assert len(set(tokens.steps)) == len(tokens.steps), "one position a step"
    assert moved


def test_a_score_is_that_of_the_canvas_as_it_came_to_be(engine: Engine) -> None:
    add(engine, 1, request(temperature=1.0))
    rows: list[Sequence] = []
    engine.before_step = lambda now: rows.extend(now)
    run_all(engine)
    engine.before_step = lambda now: None
    row = rows[-1]
    assert isinstance(row, GrowingSequence)
    assert (row.state == State.ABSENT).any()
    begin_scoring(row)
    assert isinstance(row.memory, Scoring)
    compact = row.ids[row.present]
    for look in row.memory.passes[0]:
        variant = row.compacted(row.memory.plan(row)[row.memory.passes[0].index(look)])
        assert len(variant.token_ids) == len(compact)
        masked = np.searchsorted(row.present, look.masked)
        assert (variant.token_ids[masked] == MASK).all()
        others = np.delete(np.arange(len(compact)), masked)
        assert (variant.token_ids[others] == compact[others]).all()
        assert (variant.position_ids == np.arange(len(compact))).all()
        assert (variant.heads == masked - 1).all()
        twin = row.blind(variant)
        given = np.isin(row.present, np.flatnonzero(row.state <= State.FROZEN))
        assert (twin.token_ids[given] == MASK).all()
        assert (twin.token_ids[~given] == variant.token_ids[~given]).all()
    scores = [o.score for o in engine.generate(request(temperature=1.0, best_of=4, n=4)).outputs]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1


def test_a_deadline_tells_what_is_filled(engine: Engine) -> None:
    asked = dataclasses.replace(request(temperature=1.0, n=2), partial_on_deadline=True)
    whole = {o.index: o for o in engine.generate(asked).outputs}
    for steps in range(0, min(output.steps for output in whole.values()), 3):
        add(engine, 1, asked)
        for _ in range(steps):
            assert not engine.step()
        engine.extend(1, time.monotonic_ns())
        ((_, event),) = engine.step()
        assert isinstance(event, Finished)
        for output in event.outputs:
            if output.finish_reason is FinishReason.LENGTH:
                assert output.tokens == whole[output.index].tokens
                continue
            assert output.finish_reason is FinishReason.PARTIAL
            assert [output.canvas[p] for p in output.tokens.positions] == list(output.tokens.ids)
            assert MASK not in output.tokens.ids
            filled = [
                p
                for hole, begin in holes_of(asked)
                for p in range(begin, begin + hole.longest)
                if output.canvas[p] != MASK
            ]
            assert list(output.tokens.positions) == filled


def test_one_who_leaves_frees_the_rows(engine: Engine) -> None:
    add(engine, 1, request(n=3))
    engine.step()
    engine.abort(1)
    assert not engine.has_work


def test_a_hole_begins_with_four_positions_or_what_is_nearest(engine: Engine) -> None:
    begun = []
    engine.before_step = lambda rows: begun.append(rows[0])
    for hole in (Hole(max_length=9), Hole(max_length=3), Hole(min_length=6, max_length=8)):
        add(engine, 1, request(((1,), hole, (2,))))
        engine.step()
        engine.abort(1)
    engine.before_step = lambda rows: None
    # one step has filled, deleted or expanded one
    lengths = [len(row.generated) for row in begun]
    assert all(abs(a - b) <= 1 for a, b in zip(lengths, (4, 3, 6), strict=True))


def test_what_exceeds_a_limit_stays_masked(engine: Engine) -> None:
    asked = engine.resolve(request(((1, 2), Hole(min_length=3, max_length=6), (4,))))
    row = row_of(0, asked, 0, engine.info, None)
    assert isinstance(row, GrowingSequence)
    change(row, Action.UNMASK, [2, 3, 4, 5], [DELETE] * 4)
    assert row.ids[row.present].tolist() == [1, 2, MASK, MASK, MASK, 4]
    change(row, Action.UNMASK, [2, 3, 4], [EXPAND, 7, EXPAND])
    assert row.ids[row.present].tolist() == [1, 2, MASK, MASK, 7, MASK, MASK, 4]
    change(row, Action.UNMASK, [2, 3], [EXPAND, EXPAND])
    assert row.ids.tolist() == [1, 2, MASK, MASK, MASK, 7, MASK, MASK, 4]
    assert (row.state[2:8] == State.MASKED).tolist() == [True, True, True, False, True, True]


class Undecided(CounterNoise):
    """Draws the expand token wherever it may, else the delete token wherever it may."""

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        exponentials = torch.ones(len(rows.steps), vocab_size)
        exponentials[:, EXPAND], exponentials[:, DELETE] = 1e-30, 1e-15
        return exponentials


def test_a_loop_of_growing_and_shrinking_ends(tmp_path: Path) -> None:
    engine = tiny_engine(growing_checkpoint(tmp_path), noise=Undecided())
    asked = request(((5,), Hole(max_length=12), (2,)), temperature=1.0, strategy=FixedSchedule())
    output = engine.generate(asked).outputs[0]
    expanded, deleted, filled = 24, 4 + 24 - 1, 1
    assert len(output.tokens.ids) == filled
    assert output.steps == output.forward_passes == expanded + deleted + filled <= most_steps(12)


def test_outside_growing_holes_the_tokens_are_what_they_were(engine: Engine) -> None:
    """No answer has the expand token; the delete token ends a text, and fills no hole."""
    stopped = False
    for seed in range(7):
        params = RequestParams(max_new_tokens=24, temperature=2.0, seed=seed)
        output = engine.generate(Request(TokensPrompt((seed, 2)), params)).outputs[0]
        assert EXPAND not in output.canvas[2:]
        stopped |= output.finish_reason is FinishReason.STOP and output.stop == DELETE
        hole = request(((seed,), Hole(12), (3,)), temperature=2.0, seed=seed)
        assert not {EXPAND, DELETE} & set(engine.generate(hole).outputs[0].tokens.ids)
        chosen = dataclasses.replace(
            request(temperature=2.0, seed=seed, hole_lengths=LengthChoice.CONFIDENCE),
        )
        assert not {EXPAND, DELETE} & set(engine.generate(chosen).outputs[0].tokens.ids)
    assert stopped


NO = "where holes grow"


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        ({"strategy": Klass()}, "diffusion.klass", NO),
        ({"strategy": Remdm()}, "diffusion.remdm", NO),
        ({"strategy": LeftToRight()}, "diffusion.left_to_right", "fixed_schedule, confidence_thr"),
        ({"strategy": DreamSchedule(DreamOrder.ORIGIN)}, "diffusion.dream_schedule.order", NO),
        ({"block_length": 4}, "diffusion.block_length", "(4) cannot be set " + NO),
        ({"steps": 4}, "diffusion.steps", "(4) cannot be set " + NO),
        ({"suffix_window": 4}, "diffusion.suffix_window", "(4) cannot be set " + NO),
        ({"cache": CacheKind.DUAL}, "diffusion.cache", "(dual) cannot be set " + NO),
        ({"stop_token_ids": (EXPAND,)}, "sampling.stop.token_ids[0]", "expand token"),
    ],
)
def test_what_counts_on_positions_is_refused_by_name(
    engine: Engine, params: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(request(**params))
    assert {v.field: says in v.description for v in caught.value.violations}[field]
    if "steps" in params:
        params = params | {"block_length": 28}
    if "stop_token_ids" not in params:
        engine.resolve(request(hole_lengths=LengthChoice.CONFIDENCE, **params))


def test_a_budget_and_a_constraint_are_refused_beside_growth(engine: Engine) -> None:
    hurried = dataclasses.replace(request(), latency_budget_ns=10**9)
    with pytest.raises(InvalidRequestError, match="latency_budget cannot be set where holes grow"):
        engine.resolve(hurried)
    assert engine.resolve(dataclasses.replace(hurried, budget_is_optional=True)).due_ns is None
    held = (Hole(2, constraint=RegexConstraint("a")), Hole(max_length=3))
    with pytest.raises(InvalidRequestError, match="a constraint cannot be used where holes grow"):
        engine.resolve(request(held))


def test_a_hole_at_the_documents_end_is_filled_to_its_length(engine: Engine) -> None:
    """Nothing stands behind it: even there the delete token ends no text."""
    lengths = set()
    for first in range(12):
        asked = request(
            ((first, 1), Hole(max_length=8)), temperature=1.0, ignore_eos=bool(first % 2)
        )
        lengths |= set(check(asked, engine.generate(asked)))
    assert len(lengths) > 2


def test_what_grows_says_nothing_of_the_pace_of_others(tmp_path: Path) -> None:
    engine = tiny_engine(growing_checkpoint(tmp_path))
    engine.generate(request())
    assert not engine.hurry._paces
    engine.generate(request(hole_lengths=LengthChoice.CONFIDENCE))
    assert engine.hurry._paces


def test_growth_needs_the_tokens_and_an_open_length(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="has no expand and delete tokens"):
        tiny_engine().resolve(request(hole_lengths=LengthChoice.NATIVE))
    for choice in LengthChoice:
        with pytest.raises(InvalidRequestError, match="needs a hole that leaves its length open"):
            engine.resolve(request(((1,), Hole(3), (2,)), hole_lengths=choice))
    assert engine.resolve(request()).params.hole_lengths is LengthChoice.NATIVE
    assert tiny_engine().resolve(request()).params.hole_lengths is LengthChoice.CONFIDENCE
    fixed = engine.resolve(request(((1,), Hole(3), (2,))))
    assert (fixed.params.hole_lengths, fixed.growing) == (None, ())
