"""Request ids that callers chose, remembered for a while: a retry joins the work, or its answer.

Bounded in number and bytes. Knows neither gRPC nor the engine; everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from vdiff_grpc.engine.events import Event, Finished
from vdiff_grpc.engine.types import Granularity, Request, ResolvedRequest
from vdiff_grpc.errors import RequestIdConflictError
from vdiff_grpc.server.run import Run

Name = tuple[str, str]  # caller and request id


def content_of(request: Request) -> bytes:
    """A digest of what is asked, the id and the manner of telling left out."""
    asked = repr(
        (request.prompt, request.params, request.partial_on_deadline, request.latency_budget_ns)
    )
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(slots=True, eq=False)
class Known:
    """One remembered id: being admitted, running, answered, or ended without an answer.

    seed: the resolved one, so that whoever tries again gets the same answer.
    """

    name: Name
    content: bytes
    granularity: Granularity
    stride: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    seed: int | None = None
    run: Run | None = None
    answer: bytes = b""
    expires: float = 0.0

    def refuse_others(self, request: Request, content: bytes) -> None:
        """Raises RequestIdConflictError for what is another request.

        One that wants to be told but of its end can join whatever is told.
        """
        if content != self.content:
            what = "another request; the same id needs the same content"
        elif request.granularity is not Granularity.NONE and (
            request.granularity is not self.granularity or request.stride != self.stride
        ):
            what = "this request with other stream options"
        else:
            return
        raise RequestIdConflictError(f"request_id ({self.name[1]!r}) stands for {what}")

    def replayed(self) -> tuple[ResolvedRequest, list[Event]]:
        """The request and all that was said, merged."""
        kept: tuple[ResolvedRequest, list[Event]] = pickle.loads(self.answer)
        return kept


class Retries:
    """window_s: 0 remembers nothing. max_answers, max_bytes: the oldest are forgotten first."""

    def __init__(
        self,
        window_s: float,
        max_answers: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_bytes = 0
        self._window_s = window_s
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._clock = clock
        self._busy: dict[Name, Known] = {}  # being admitted, or running
        self._resting: OrderedDict[Name, Known] = OrderedDict()  # the first to expire comes first

    def __len__(self) -> int:
        return len(self._busy) + len(self._resting)

    @property
    def remembers(self) -> bool:
        return self._window_s > 0

    async def find(self, name: Name, request: Request, content: bytes) -> Known | None:
        """What is known of the name; waits while it is being admitted.

        Raises RequestIdConflictError.
        """
        while True:
            self._forget()
            known = self._busy.get(name) or self._resting.get(name)
            if known is None:
                return None
            if known.content != content and name in self._resting and not known.answer:
                return None  # nothing has come of it: the id is free
            known.refuse_others(request, content)
            if known.admitted.is_set():
                return known
            await known.admitted.wait()

    def begin(self, name: Name, request: Request, content: bytes) -> Known:
        """The request of this name is being admitted: others wait for `admit` or `refuse`."""
        former = self._resting.pop(name, None)
        known = Known(name, content, request.granularity, request.stride)
        if former is not None:
            self.num_bytes -= len(former.answer)
            if former.content == content:
                known.seed = former.seed
        self._busy[name] = known
        return known

    def admit(self, known: Known, run: Run) -> None:
        known.run, known.seed = run, run.request.params.seed
        known.admitted.set()

    def refuse(self, known: Known) -> None:
        """It did not come to a run: the name is free, but for the seed of an earlier one."""
        del self._busy[known.name]
        if known.seed is not None:
            self._rest(known)
        known.admitted.set()

    def end(self, known: Known) -> None:
        """Its run has ended, or nobody waits for it any more."""
        run, known.run = known.run, None
        del self._busy[known.name]
        if run is not None and isinstance(run.end, Finished):
            answer = pickle.dumps((run.request, run.said()), pickle.HIGHEST_PROTOCOL)
            if len(answer) <= self._max_bytes:
                known.answer = answer
                self.num_bytes += len(answer)
        self._rest(known)

    def _rest(self, known: Known) -> None:
        known.expires = self._clock() + self._window_s
        self._resting[known.name] = known
        while len(self._resting) > self._max_answers or self.num_bytes > self._max_bytes:
            self._forget_first()

    def _forget(self) -> None:
        now = self._clock()
        while self._resting and next(iter(self._resting.values())).expires <= now:
            self._forget_first()

    def _forget_first(self) -> None:
        _, known = self._resting.popitem(last=False)
        self.num_bytes -= len(known.answer)
