"""One request in the engine, and everyone who reads it. Knows neither gRPC nor the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vdiff_grpc.engine.events import Event, Failed, Finished
from vdiff_grpc.engine.messages import Mark
from vdiff_grpc.engine.types import Request, ResolvedRequest
from vdiff_grpc.errors import PermissionDeniedError
from vdiff_grpc.server.request_stream import RequestStream


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and what that means for it.

    caller: the name of its key, for counters. group: who shares request ids, a limit of open
    calls and one share of the engine. is_named: the caller chose the request's id, that of retries. charge: may refuse the request once it is resolved, by raising.
    settle: is told the tokens that were used in the end. on_mark: is told the phases of a request
    that enters the engine for this caller; None: nobody wants to know. min_priority: of its requests. latency_budget_s: of those that say none.
    """

    caller: str = ""
    group: str = ""
    is_named: bool = False
    charge: Callable[[ResolvedRequest], None] = lambda _: None
    settle: Callable[[int], None] = lambda _: None
    on_mark: Callable[[Mark], None] | None = None
    min_priority: int = 0
    latency_budget_s: float | None = None

    def budgeted(self, request: Request) -> Request:
        """With the budget that the operator has given the caller, where it says none itself."""
        if self.latency_budget_s is None or request.latency_budget_ns is not None:
            return request
        budget_ns = round(self.latency_budget_s * 1e9)
        return replace(request, latency_budget_ns=budget_ns, budget_is_optional=True)

    def priority(self, asked: int | None) -> int:
        """Of a request; said nothing, the first that this caller may have from 0 on.

        Raises PermissionDeniedError.
        """
        if asked is None:
            return max(0, self.min_priority)
        if asked < self.min_priority:
            raise PermissionDeniedError(
                f"priority ({asked}) is below the smallest of this caller ({self.min_priority})"
            )
        return asked


@dataclass(slots=True, eq=False)
class Run:
    """Events go to every reader. A reader that comes late is told what it missed in one piece.

    group: whose request it is. content: a digest of what was asked.
    on_left: called when the last reader leaves. may_join: others may come; then what was said
    is recorded. is_suspect: holds the quarantine's lock. deadline_ns: as the engine knows it; limit_ns: as far as it may be moved.
    """

    key: int
    request: ResolvedRequest
    group: str
    content: bytes
    max_pending: int
    on_left: Callable[[Run], None]
    may_join: bool = False
    is_suspect: bool = False
    limit_ns: int | None = None
    on_mark: Callable[[Mark], None] | None = None
    deadline_ns: int | None = None
    end: Finished | Failed | None = None
    _readers: list[RequestStream] = field(default_factory=list)
    _record: RequestStream | None = None

    def __post_init__(self) -> None:
        self.deadline_ns = self.request.deadline_ns
        if self.may_join:
            self._record = RequestStream(self.key, self.request, 0, lambda _: None)

    def push(self, event: Event) -> None:
        if self._record is not None:
            self._record.push(event)
        for reader in self._readers:
            reader.push(event)
        if isinstance(event, Finished | Failed):
            self.end = event

    def reader(self, on_close: Callable[[], None]) -> RequestStream:
        """A reader of its own; `on_close` is called once, when it leaves."""

        def left(stream: RequestStream) -> None:
            self._readers.remove(stream)
            on_close()
            if not self._readers and self.end is None:
                self.on_left(self)

        stream = RequestStream(self.key, self.request, self.max_pending, left)
        for event in self.said():
            stream.push(event)
        self._readers.append(stream)
        return stream

    def said(self) -> list[Event]:
        """What a reader must hear who comes now."""
        return [] if self._record is None else self._record.missed()


def num_tokens(request: ResolvedRequest) -> int:
    """Canvas tokens of all rows."""
    return len(request.canvas) * request.num_rows


def replay(
    request: ResolvedRequest, said: list[Event], on_close: Callable[[], None]
) -> RequestStream:
    """A reader of a request that has ended."""
    stream = RequestStream(0, request, len(said), lambda _: on_close())
    for event in said:
        stream.push(event)
    return stream
