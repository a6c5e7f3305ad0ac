"""Holes whose length the engine chooses: what follows, in any company, is as if it had been asked."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict
from typing import Any

import pytest
import torch

from tests.engine.tools import (
    GOLDEN,
    LogitsRecorder,
    add,
    finished,
    run_all,
    tiny_engine,
)
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.events import Event, Finished, FinishReason, LaidOut, Output
from vdiff_grpc.engine.lengths import MAX_CANDIDATES, LengthSearch
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt
from vdiff_grpc.engine.strategies import (
    ConfidenceThreshold,
    DreamOrder,
    DreamSchedule,
    FixedSchedule,
    FreeDave,
    Klass,
    Remdm,
    Wino,
)
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import resolve

Segment = str | tuple[int, ...] | Hole

OPEN: tuple[Segment, ...] = (
    (5, 6, 7),
    Hole(min_length=2, max_length=9),
    (8, 9),
    Hole(3),
    (10,),
    Hole(max_length=6),
    (11,),
)
NUM_CANDIDATES = 8 + 6  # of OPEN, each a pass


def request(segments: tuple[Segment, ...], **params: Any) -> Request:
    return Request(InfillPrompt(segments), RequestParams(**{"seed": 3} | params))


def of_lengths(asked: Request, lengths: tuple[int, ...]) -> Request:
    """The same with holes of these lengths."""
    assert isinstance(asked.prompt, InfillPrompt)
    left = iter(lengths)
    segments = (Hole(next(left)) if isinstance(s, Hole) else s for s in asked.prompt.segments)
    return dataclasses.replace(asked, prompt=InfillPrompt(tuple(segments)))


def lengths_of(events: list[Any]) -> tuple[int, ...]:
    assert isinstance(events[0], LaidOut)
    return events[0].hole_lengths


def without_passes(output: Output) -> Output:
    return dataclasses.replace(output, forward_passes=0, computed_tokens=0)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "n": 3},
        {"strategy": DreamSchedule(DreamOrder.ORIGIN), "temperature": 0.5, "steps": 15},
        {"strategy": FixedSchedule(), "cfg_scale": 1.5, "top_logprobs": 2},
        {"strategy": ConfidenceThreshold(0.3), "cache": CacheKind.DUAL, "block_length": 4},
        {"strategy": FixedSchedule(), "cache": CacheKind.PREFIX, "cfg_scale": 0.5},
        {"strategy": Klass(0.1, 0.5), "block_length": 5},
        {"strategy": Wino(0.1, 0.3)},
        {"strategy": FreeDave(2), "temperature": 1.0},
        {"strategy": Remdm(eta=0.3), "block_length": 6},
        {"ignore_eos": True, "block_length": 128},
    ],
    ids=str,
)
def test_the_answer_is_that_of_the_lengths_that_were_chosen(params: dict[str, Any]) -> None:
    engine = tiny_engine()
    asked = request(OPEN, **params)
    add(engine, 1, asked)
    events = run_all(engine)[1]
    lengths = lengths_of(events)
    assert 2 <= lengths[0] <= 9
    assert lengths[1] == 3
    assert 1 <= lengths[2] <= 6
    add(engine, 2, of_lengths(asked, lengths))
    plain = finished(run_all(engine)[2]).outputs
    chosen = finished(events).outputs
    assert list(map(without_passes, chosen)) == list(map(without_passes, plain))
    passes = [
        one.forward_passes - other.forward_passes for one, other in zip(chosen, plain, strict=True)
    ]
    assert passes == [NUM_CANDIDATES] + [0] * (len(plain) - 1), "the first chooses for all"


def test_what_is_given_stays_and_holes_have_a_length_in_their_range() -> None:
    engine, rng = tiny_engine(max_running_rows=4), random.Random(2)
    asked = {}
    for key in range(24):
        segments: list[Segment] = []
        for _ in range(rng.randint(1, 4)):
            segments.append(tuple(rng.randrange(94) for _ in range(rng.randint(0, 4))))
            least = rng.randint(1, 5)
            variable = Hole(min_length=least, max_length=least + rng.randint(0, 20))
            segments.append(rng.choice([variable, Hole(least)]))
        asked[key] = request(tuple(segments), seed=key, temperature=rng.choice([0.0, 1.0]))
        add(engine, key, asked[key])
    for key, events in run_all(engine).items():
        prompt, canvas = asked[key].prompt, list(finished(events).outputs[0].canvas)
        assert isinstance(prompt, InfillPrompt)
        holes = [s for s in prompt.segments if isinstance(s, Hole)]
        lengths = iter(
            lengths_of(events)
            if isinstance(events[0], LaidOut)
            else [h.length or h.longest for h in holes]
        )
        for segment in prompt.segments:
            assert not isinstance(segment, str)
            if isinstance(segment, Hole):
                length = next(lengths)
                assert segment.shortest <= length <= segment.longest
                del canvas[:length]
            else:
                assert tuple(canvas[: len(segment)]) == segment
                del canvas[: len(segment)]
        assert not canvas


def test_the_length_is_that_of_the_highest_mean_confidence() -> None:
    """A pass that fills everything at once tells the confidences that are compared."""
    engine = tiny_engine(early_end=False)
    seen = set()
    for given in range(6):
        before, after = (given, 40 + given), (70 - given, given)
        means = []
        for length in range(1, 12):
            at_once = request((before, Hole(length), after), steps=1, block_length=length)
            done = engine.generate(at_once).outputs[0]
            means.append(sum(done.tokens.confidences) / length)
        add(engine, 1, request((before, Hole(max_length=11), after)))
        lengths = lengths_of(run_all(engine)[1])
        assert lengths == (1 + means.index(max(means)),)
        seen |= set(lengths)
    assert len(seen) > 1, "or the test could not fail"


def test_dreams_shift_reads_the_same_confidences() -> None:
    engine = tiny_engine(GOLDEN / "tiny-dream", early_end=False)
    segments: tuple[Segment, ...] = ((1, 2), Hole(max_length=7), (3,))
    means = []
    for length in range(1, 8):
        at_once = request(((1, 2), Hole(length), (3,)), steps=1, block_length=length)
        done = engine.generate(at_once).outputs[0]
        means.append(sum(done.tokens.confidences) / length)
    add(engine, 1, request(segments))
    assert lengths_of(run_all(engine)[1]) == (1 + means.index(max(means)),)


def test_the_choice_is_the_same_in_any_company_to_the_last_bit() -> None:
    requests = [
        request(OPEN, temperature=1.0),
        request(((1,), Hole(max_length=20), (2, 3)), n=2, temperature=0.7),
        request((Hole(min_length=3, max_length=40),), strategy=ConfidenceThreshold(0.3)),
        request(((9, 9), Hole(7), (4,))),
    ]
    engine = tiny_engine()
    recorder = LogitsRecorder.install(engine)
    alone = {}
    for key, asked in enumerate(requests):
        add(engine, key, asked)
        alone[key] = run_all(engine)[key]
    logits_alone, recorder.seen = recorder.seen, defaultdict(list)
    together: dict[int, list[Event]] = defaultdict(list)
    for key in (2, 0, 3, 1):  # each joins while those before it choose or fill
        add(engine, key, requests[key])
        for owner, event in engine.step():
            together[owner].append(event)
    for owner, events in run_all(engine).items():
        together[owner] += events
    for key in alone:
        assert finished(together[key]).outputs == finished(alone[key]).outputs
    assert recorder.seen.keys() == logits_alone.keys()
    for row, seen in recorder.seen.items():
        assert all(torch.equal(a, b) for a, b in zip(seen, logits_alone[row], strict=True)), row


def test_candidates_take_several_steps_where_one_would_be_long() -> None:
    done, steps = [], []
    for max_prompt_step_tokens in (1, 40, 1024):
        engine = tiny_engine(max_prompt_step_tokens=max_prompt_step_tokens)
        done.append(engine.generate(request(OPEN)).outputs)
        steps.append(engine.statistics.engine_steps)
    assert done[0] == done[1] == done[2]
    fill = done[0][0].forward_passes - NUM_CANDIDATES
    assert steps == [fill + NUM_CANDIDATES, steps[1], fill + 2]
    assert fill + 2 < steps[1] < fill + NUM_CANDIDATES


@pytest.mark.parametrize("best", [1, 2, 15, 16, 17, 99, 250, 256])
def test_a_long_range_is_searched_from_coarse_to_fine(best: int) -> None:
    engine = tiny_engine()
    limits = dataclasses.replace(engine.limits, max_canvas_tokens=400)
    info = dataclasses.replace(engine.info, max_positions=400)
    asked = resolve(request(((1,), Hole(max_length=256), (2,))), info, limits, None)
    search, looked = LengthSearch(asked), list[int]()
    while search.hole is not None:
        batch = [lengths[0] for lengths in search.batch()]
        looked += batch
        search.note([-abs(length - best) for length in batch])
    assert search.lengths == [best]
    assert len(looked) == len(set(looked)) <= 4 * MAX_CANDIDATES


def test_equal_scores_go_to_the_shorter_hole() -> None:
    engine = tiny_engine()
    asked = resolve(
        request((Hole(min_length=3, max_length=8), (2,))), engine.info, engine.limits, None
    )
    search = LengthSearch(asked)
    search.note([0.5] * len(search.batch()))
    assert (search.hole, search.lengths) == (None, [3])


def test_one_who_leaves_while_lengths_are_chosen_frees_the_rows() -> None:
    engine = tiny_engine(max_prompt_step_tokens=1, max_running_rows=1)
    add(engine, 1, request(OPEN, n=3))
    add(engine, 2, request(((1,), Hole(2))))
    assert engine.step() == []
    engine.abort(1)
    assert list(run_all(engine)) == [2]
    assert engine.statistics.running_rows == engine.statistics.waiting_rows == 0


def test_a_deadline_while_lengths_are_chosen_gives_an_empty_partial_answer() -> None:
    engine = tiny_engine(max_prompt_step_tokens=1)
    asked = dataclasses.replace(request(OPEN, n=2), partial_on_deadline=True)
    add(engine, 1, asked)
    engine.step()
    engine.extend(1, time.monotonic_ns())
    ((key, event),) = engine.step()
    assert key == 1
    assert isinstance(event, Finished)
    for output in event.outputs:
        assert output.finish_reason is FinishReason.PARTIAL
        assert output.hole_texts == ("", "", "")
        assert not output.tokens.ids


def test_a_range_of_one_length_is_that_hole() -> None:
    engine = tiny_engine()
    one = engine.generate(request(((1,), Hole(min_length=4, max_length=4), (2,))))
    other = engine.generate(request(((1,), Hole(4), (2,))))
    assert one.outputs == other.outputs


def test_neither_temperature_nor_seed_changes_the_choice() -> None:
    engine, found = tiny_engine(), set()
    for seed, temperature in enumerate((0.0, 2.0, 2.0, 2.0)):
        add(engine, seed, request(OPEN, seed=seed, temperature=temperature))
        found.add(lengths_of(run_all(engine)[seed]))
    assert len(found) == 1
