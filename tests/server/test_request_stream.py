"""One request's events: nothing is lost for a slow reader, however it reads."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdiff_grpc.engine.events import (
    CanvasSnapshot,
    Committed,
    Event,
    Failed,
    Finished,
    StepUpdate,
    Tokens,
    TopTokens,
    UpdateKind,
)
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import Granularity, ResolvedRequest, SamplingParams, Span, SpanKind
from vdiff_grpc.errors import DeadlineError
from vdiff_grpc.server.request_stream import RequestStream

MASK = 99
LENGTH = 12
FINISHED = Finished((), 0, 0, 0)


def resolved(n: int = 1) -> ResolvedRequest:
    params = SamplingParams(
        LENGTH, 0.0, 1.0, 0, 0, n, (), (), False, LENGTH, LENGTH, 0.0, FixedSchedule(), 1
    )
    spans = (Span(SpanKind.PROMPT, 1), Span(SpanKind.HOLE, LENGTH))
    canvas = (7, *[MASK] * LENGTH)
    return ResolvedRequest(
        "r", canvas, spans, params, tuple(range(n)), False, Granularity.STEPS, 1, 0
    )


def opened(n: int = 1, max_pending: int = 4) -> tuple[RequestStream, list[RequestStream]]:
    left: list[RequestStream] = []
    return RequestStream(1, resolved(n), max_pending, left.append), left


def step(output: int, number: int, position: int, token: int) -> StepUpdate:
    return StepUpdate(
        output, number, 0, number + 1, UpdateKind.UNMASK, (position,), (token,), (0.5,), ("t",)
    )


def committed(output: int, position: int, token: int, hole: int = 0) -> Committed:
    top = TopTokens((token, 91), (-0.7, -1.5), (b"t", b"u"))
    tokens = Tokens((token,), (position,), (0,), (0.5,), (b"t",), (position,), (top,))
    return Committed(output, f"<{token}>", tokens, hole)


def generation(n: int, seed: int) -> list[Event]:
    """Steps in random order; what is filled without a gap is committed; outputs interleaved."""
    rng = random.Random(seed)
    rows: list[list[Event]] = []
    for output in range(n):
        events: list[Event] = []
        filled: dict[int, int] = {}
        done = 1
        for number, position in enumerate(rng.sample(range(1, LENGTH + 1), LENGTH)):
            filled[position] = rng.randrange(90)
            events.append(step(output, number, position, filled[position]))
            while done in filled:
                events.append(committed(output, done, filled[done], hole=int(done > 6)))
                done += 1
        rows.append(events)
    mixed: list[Event] = []
    while any(rows):
        mixed.append(rng.choice([row for row in rows if row]).pop(0))
    return [*mixed, FINISHED]


def replayed(events: list[Event], n: int) -> tuple[list[list[int]], list[str], list[Tokens]]:
    canvases = [list(resolved().canvas) for _ in range(n)]
    texts = [""] * n
    tokens = [Tokens()] * n
    for event in events:
        match event:
            case StepUpdate(output, positions=positions, token_ids=token_ids):
                for position, token in zip(positions, token_ids, strict=True):
                    canvases[output][position] = token
            case CanvasSnapshot(output, token_ids=token_ids):
                canvases[output] = list(token_ids)
            case Committed(output, text, more):
                texts[output] += text
                tokens[output] += more
                for position, token in zip(more.positions, more.ids, strict=True):
                    assert canvases[output][position] == token, "committed before it was filled"
    return canvases, texts, tokens


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 3),
    max_pending=st.integers(1, 12),
    reads=st.lists(st.integers(0, 6), min_size=80, max_size=80),
)
def test_whatever_the_reader_misses_it_ends_with_the_same_canvas_and_text(
    seed: int, n: int, max_pending: int, reads: list[int]
) -> None:
    async def read() -> list[Event]:
        stream, _ = opened(n, max_pending)
        got: list[Event] = []
        for event, turns in zip(generation(n, seed), reads, strict=False):
            stream.push(event)
            while turns and (stream._pending or stream._backlogs):
                got.append(await anext(stream))
                turns -= 1
        got.extend([event async for event in stream])
        return got

    got = asyncio.run(read())
    assert got[-1] is FINISHED
    assert got.count(FINISHED) == 1
    assert replayed(got, n) == replayed(generation(n, seed), n)


async def test_a_reader_that_keeps_up_gets_every_event_unchanged() -> None:
    stream, _ = opened(2, max_pending=1)
    events = generation(2, seed=3)
    for event in events[:-1]:
        stream.push(event)
        assert await anext(stream) is event


async def test_a_slow_reader_gets_one_snapshot_and_one_text_per_hole() -> None:
    stream, _ = opened(1, max_pending=4)
    events = generation(1, seed=5)
    for event in events:
        stream.push(event)
    got = [event async for event in stream]
    assert [type(event) for event in got] == [CanvasSnapshot, Committed, Committed, Finished]
    snapshot = got[0]
    assert isinstance(snapshot, CanvasSnapshot)
    assert (snapshot.step, snapshot.forward_passes) == (LENGTH - 1, LENGTH)
    assert snapshot.confidences == (0.0, *[0.5] * LENGTH)


async def test_a_failure_is_raised_after_what_came_before_it() -> None:
    stream, left = opened()
    stream.push(step(0, 0, 1, 5))
    stream.push(Failed(DeadlineError("too late")))
    stream.push(step(0, 1, 2, 5))
    assert isinstance(await anext(stream), StepUpdate)
    with pytest.raises(DeadlineError):
        await anext(stream)
    await stream.aclose()
    assert left == [stream]


async def test_leaving_wakes_a_waiting_reader_and_is_told_once() -> None:
    stream, left = opened()
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    async with stream:
        pass
    await stream.aclose()
    assert await waiting is None
    assert left == [stream]
    stream.push(step(0, 0, 1, 5))
    assert [event async for event in stream] == []
