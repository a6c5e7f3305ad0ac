"""The events of one request on their way to one reader. Knows neither gRPC nor the engine.

Bounded for a slow reader: when `max_pending` events wait, all of them give way to one backlog per
output, from which the reader gets the canvas as it then stands and the committed text in one
piece. Nothing committed is lost. All on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import chain, groupby
from types import TracebackType
from typing import Self

from vdiff_grpc.engine.events import (
    CanvasSnapshot,
    Committed,
    Event,
    Failed,
    Finished,
    LaidOut,
    StepUpdate,
    Tokens,
)
from vdiff_grpc.engine.lengths import laid_out
from vdiff_grpc.engine.types import ResolvedRequest


class RequestStream:
    """Asynchronous iterator over a request's events; ends after Finished, raises on Failed.

    `on_close` is called once when the reader leaves, whether or not the request has ended.
    """

    def __init__(
        self,
        key: int,
        request: ResolvedRequest,
        max_pending: int,
        on_close: Callable[[RequestStream], None],
    ) -> None:
        self.key = key
        self.request = request
        self.ended = False  # the engine has said its last word
        self._max_pending = max_pending
        self._on_close = on_close
        self._closed = False
        self._pending: deque[Event] = deque()
        self._backlogs: dict[int, _Backlog] = {}
        self._canvases: dict[int, _Canvas] = {}
        self._wake = asyncio.Event()

    @property
    def is_replay(self) -> bool:
        """Its request had ended before: see run.replay."""
        return self.key == 0

    def push(self, event: Event) -> None:
        """Adds the engine's next event. Ignored once ended or closed."""
        if self.ended or self._closed:
            return
        self.ended = isinstance(event, Finished | Failed)
        if isinstance(event, LaidOut):
            self.request = laid_out(self.request, event.hole_lengths)
        if isinstance(event, StepUpdate | CanvasSnapshot):
            self._canvas(event.output_index).apply(event)
        if self._backlogs:
            self._put_back(event)
        elif len(self._pending) < self._max_pending or self.ended:
            self._pending.append(event)
        else:
            for waiting in self._pending:
                self._put_back(waiting)
            self._pending.clear()
            self._put_back(event)
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._pending and not self._backlogs:
            if self.ended or self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if not self._pending:
            self._take_backlogs()
        event = self._pending.popleft()
        if isinstance(event, Failed):
            raise event.error
        return event

    def missed(self) -> list[Event]:
        """All that waits, merged as for a slow reader; it goes on waiting."""
        for waiting in self._pending:
            self._put_back(waiting)
        self._pending.clear()
        return [event for backlog in self._backlogs.values() for event in backlog.events()]

    async def finished(self) -> Finished:
        """Waits for the end, passing over all else."""
        async for event in self:
            if isinstance(event, Finished):
                return event
        raise RuntimeError("the stream was closed before the request ended")

    async def aclose(self) -> None:
        """Leaves. What the engine says from now on goes nowhere."""
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._backlogs.clear()
            self._wake.set()
            self._on_close(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _canvas(self, output_index: int) -> _Canvas:
        if output_index not in self._canvases:
            self._canvases[output_index] = _Canvas(output_index, self.request.canvas)
        return self._canvases[output_index]

    def _put_back(self, event: Event) -> None:
        """Adds an event to its output's backlog. The request's end goes under -1: it comes last."""
        if isinstance(event, Finished | Failed):
            self._backlogs[-1] = _Backlog(alone=event)
            return
        if isinstance(event, LaidOut):  # nothing came before it
            self._backlogs[-2] = _Backlog(alone=event)
            return
        backlog = self._backlogs.setdefault(event.output_index, _Backlog())
        if isinstance(event, Committed):
            backlog.committed.append(event)
        else:
            backlog.canvas = self._canvas(event.output_index)

    def _take_backlogs(self) -> None:
        for backlog in self._backlogs.values():
            self._pending.extend(backlog.events())
        self._backlogs.clear()


@dataclass(slots=True)
class _Backlog:
    """What a slow reader has missed of one output."""

    canvas: _Canvas | None = None  # set when it missed a change of the canvas
    committed: list[Committed] = field(default_factory=list)
    alone: Finished | Failed | LaidOut | None = None  # of no output

    def events(self) -> list[Event]:
        # The canvas first: what is committed is filled there.
        events: list[Event] = [] if self.canvas is None else [self.canvas.snapshot()]
        events.extend(
            _merged(hole_index, list(run))
            for hole_index, run in groupby(self.committed, lambda committed: committed.hole_index)
        )
        if self.alone is not None:
            events.append(self.alone)
        return events


def _merged(hole_index: int, run: list[Committed]) -> Committed:
    # column by column: adding them up one by one would copy the first ones again and again
    columns = {
        column.name: tuple(chain.from_iterable(getattr(c.tokens, column.name) for c in run))
        for column in fields(Tokens)
    }
    return Committed(
        run[0].output_index,
        "".join(committed.text for committed in run),
        Tokens(**columns),
        hole_index,
    )


class _Canvas:
    """One output's canvas, as all updates so far have left it."""

    def __init__(self, output_index: int, canvas: tuple[int, ...]) -> None:
        self.output_index = output_index
        self.token_ids = list(canvas)
        self.confidences = [0.0] * len(canvas)
        self.last: StepUpdate | CanvasSnapshot | None = None

    def apply(self, event: StepUpdate | CanvasSnapshot) -> None:
        self.last = event
        if isinstance(event, CanvasSnapshot):
            self.token_ids[:] = event.token_ids
            self.confidences[:] = event.confidences
            return
        columns = zip(event.positions, event.token_ids, event.confidences, strict=True)
        for position, token_id, confidence in columns:
            self.token_ids[position] = token_id
            self.confidences[position] = confidence

    def snapshot(self) -> CanvasSnapshot:
        assert self.last is not None
        return CanvasSnapshot(
            self.output_index,
            self.last.step,
            self.last.block,
            self.last.forward_passes,
            tuple(self.token_ids),
            tuple(self.confidences),
        )
