"""All open requests: how each comes in, who reads it, and how it ends.

Knows neither gRPC nor how the engine is kept running. Everything is on the event loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from vdiff_grpc.engine.events import Failed, Finished
from vdiff_grpc.engine.messages import Abort, Add, Command, Extend, Mark, StepReport
from vdiff_grpc.engine.types import EngineConfig, Request, ResolvedRequest
from vdiff_grpc.errors import (
    BudgetError,
    EngineUnavailableError,
    QueueTimeoutError,
    RequestCancelledError,
)
from vdiff_grpc.server.admission import Admission, AdmissionLimits
from vdiff_grpc.server.quarantine import Quarantine
from vdiff_grpc.server.request_stream import RequestStream
from vdiff_grpc.server.retries import Known, Retries, content_of
from vdiff_grpc.server.run import Origin, Run, num_tokens, replay
from vdiff_grpc.server.supervisor import Lost
from vdiff_grpc.server.usage import Usage


@dataclasses.dataclass(frozen=True, slots=True)
class Care:
    """How the server treats requests and engine beyond what the engine itself knows; 0 is none.

    The names are those of ServerConfig.
    """

    max_pending_events: int = 64
    max_calls_per_caller: int = 0
    max_tokens_in_flight: int = 0
    max_step_time_s: float = 0.0
    max_load_time_s: float = 0.0
    request_id_window_s: float = 0.0
    max_kept_answers: int = 0
    max_kept_bytes: int = 0
    quarantine_s: float = 0.0


class Runs:
    """Between the calls and the engine.

    send: to the engine. resolve: validates; raises InvalidRequestError. refuse_unless_ready:
    raises EngineUnavailableError.
    """

    def __init__(
        self,
        config: EngineConfig,
        care: Care,
        send: Callable[[Command], None],
        resolve: Callable[[Request], Awaitable[ResolvedRequest]],
        refuse_unless_ready: Callable[[], None],
    ) -> None:
        self.usage = Usage()
        self._max_pending_events = care.max_pending_events
        self._send = send
        self._resolve = resolve
        self._refuse_unless_ready = refuse_unless_ready
        self._admission = Admission(
            AdmissionLimits(
                config.max_running_rows,
                config.max_waiting_rows,
                care.max_calls_per_caller,
                care.max_tokens_in_flight,
            )
        )
        self._retries = Retries(
            care.request_id_window_s, care.max_kept_answers, care.max_kept_bytes
        )
        self._quarantine = Quarantine(care.quarantine_s)
        self._runs: dict[int, Run] = {}
        self._known: dict[int, Known] = {}  # of the runs whose id the caller chose
        self._next_key = 0

    @property
    def num_open(self) -> int:
        return len(self._runs)

    @property
    def num_rows(self) -> int:
        """Rows that are held, running or waiting."""
        return self._admission.rows

    @property
    def num_refused(self) -> int:
        """Requests for which there was no place."""
        return self._admission.num_refused

    async def submit(
        self, request: Request, deadline_ns: int | None, origin: Origin
    ) -> RequestStream:
        """Admits a request at once or refuses it at once; whoever gets the stream closes it.

        With an id that the caller chose it may join a request that runs, or get an answer kept.
        deadline_ns: time.monotonic_ns() at which the caller no longer waits.
        Raises InvalidRequestError, QueueFullError, CallerLimitError, RequestIdConflictError,
        QuarantinedError, EngineUnavailableError, PermissionDeniedError, or what `origin.charge`
        raises.
        """
        self._admission.open_call(origin.group)

        def close_call() -> None:
            self._admission.close_call(origin.group)

        try:
            priority = origin.priority(request.priority)
            request = origin.budgeted(dataclasses.replace(request, priority=priority))
            content = content_of(request)
            if not (origin.is_named and self._retries.remembers):
                run = await self._admit(request, content, deadline_ns, origin)
                return run.reader(close_call)
            name = (origin.group, request.request_id)
            known = await self._retries.find(name, request, content)
            if known is not None and known.answer:
                return replay(*known.replayed(), close_call)
            if known is None or known.run is None:
                known = await self._admit_named(name, request, content, deadline_ns, origin)
            assert known.run is not None, "it was admitted"
            self._extend(known.run, deadline_ns)
            return known.run.reader(close_call)
        except BaseException:
            close_call()
            raise

    def cancel(self, group: str, request_id: str) -> bool:
        """Ends the group's own requests of this id; whether there was one."""
        found = [
            run
            for run in self._runs.values()
            if run.group == group and run.request.request_id == request_id
        ]
        for run in found:
            self._send(Abort(run.key))
            self._end(run, Failed(RequestCancelledError(f"request {request_id!r} was cancelled")))
        return bool(found)

    def end_all(self, reason: str) -> None:
        """Ends every open request with EngineUnavailableError."""
        for run in list(self._runs.values()):
            self._send(Abort(run.key))
            self._end(run, Failed(EngineUnavailableError(reason)))

    def stepped(self, report: StepReport) -> None:
        """What the engine says of one step."""
        for spent in report.spent:
            self.usage.end(spent.key, spent.completion_tokens, spent.forward_passes)
        for mark in report.marks:
            marked = self._runs.get(mark.key)
            if marked is not None and marked.on_mark is not None:
                marked.on_mark(mark)
        for key, event in report.events:
            if isinstance(event, Finished):
                self.usage.end(key, event.completion_tokens, event.forward_passes)
            run = self._runs.get(key)
            if run is None:
                continue  # its readers have left; the engine did not know yet
            if isinstance(event, Finished):
                service_s = (event.total_time_ns - event.queue_time_ns) / 1e9
                self._admission.note_service(service_s)
                self._quarantine.acquit(run.content)
            elif isinstance(event, Failed) and isinstance(event.error, QueueTimeoutError):
                event.error.retry_after_s = self._admission.retry_after_s
            elif isinstance(event, Failed) and isinstance(event.error, BudgetError):
                self._admission.num_refused += 1
            if isinstance(event, Finished | Failed):
                self._end(run, event)
            else:
                run.push(event)

    def lost(self, lost: Lost, retry_after_s: float) -> None:
        """The engine is gone, and with it all that was open."""
        self.usage.lose()
        self._quarantine.blame(self._runs[key].content for key in lost.keys if key in self._runs)
        for run in list(self._runs.values()):
            error = EngineUnavailableError(f"engine process ended: {lost.reason}", retry_after_s)
            self._end(run, Failed(error))

    # --- inside -------------------------------------------------------------

    async def _admit_named(
        self,
        name: tuple[str, str],
        request: Request,
        content: bytes,
        deadline_ns: int | None,
        origin: Origin,
    ) -> Known:
        known = self._retries.begin(name, request, content)
        if known.seed is not None and request.params.seed is None:
            params = dataclasses.replace(request.params, seed=known.seed)
            request = dataclasses.replace(request, params=params)
        try:
            run = await self._admit(request, content, deadline_ns, origin, may_join=True)
        except BaseException:
            self._retries.refuse(known)
            raise
        self._retries.admit(known, run)
        self._known[run.key] = known
        return known

    async def _admit(
        self,
        request: Request,
        content: bytes,
        deadline_ns: int | None,
        origin: Origin,
        *,
        may_join: bool = False,
    ) -> Run:
        self._quarantine.refuse_guilty(content)
        self._refuse_unless_ready()
        places = self._admission
        # One place is held meanwhile, so that the queue's limit bounds this work, too.
        places.take_rows(1)
        rows, tokens, is_suspect = 1, 0, False
        try:
            resolved = await self._resolve(request)
            places.take_rows(resolved.num_rows - 1)
            rows = resolved.num_rows
            places.take_tokens(num_tokens(resolved))
            tokens = num_tokens(resolved)
            if self._quarantine.is_suspect(content):
                is_suspect = await self._quarantine.one_at_a_time.acquire()
                self._quarantine.refuse_guilty(content)
            self._refuse_unless_ready()
            origin.charge(resolved)
        except BaseException:
            places.give_rows(rows)
            places.give_tokens(tokens)
            if is_suspect:
                self._quarantine.one_at_a_time.release()
            raise
        limit_ns = resolved.deadline_ns
        if deadline_ns is not None:
            deadline_ns = min(deadline_ns, limit_ns or deadline_ns)
        resolved = dataclasses.replace(
            resolved,
            deadline_ns=limit_ns if deadline_ns is None else deadline_ns,
            caller=origin.group,
        )
        self._next_key += 1
        run = Run(
            self._next_key,
            resolved,
            origin.group,
            content,
            self._max_pending_events,
            self._everyone_left,
            may_join,
            is_suspect,
            limit_ns,
            origin.on_mark,
        )
        self._runs[run.key] = run
        self.usage.begin(run.key, origin.caller, resolved.num_prompt_tokens, origin.settle)
        if run.on_mark is not None:
            run.on_mark(Mark(run.key, "queued", resolved.arrival_ns))
        self._send(Add(run.key, resolved, is_watched=run.on_mark is not None))
        return run

    def _extend(self, run: Run, deadline_ns: int | None) -> None:
        """Gives a run the time of whoever joins it; a partial answer comes when it was asked for."""
        wanted = (
            run.limit_ns if deadline_ns is None else min(deadline_ns, run.limit_ns or deadline_ns)
        )
        if wanted is None or run.deadline_ns is None or run.request.partial_on_deadline:
            return
        if wanted > run.deadline_ns:
            run.deadline_ns = wanted
            self._send(Extend(run.key, wanted))

    def _end(self, run: Run, event: Finished | Failed | None) -> None:
        """Gives back what the run held. event: its last word; None when nobody listens."""
        del self._runs[run.key]
        self._admission.give_rows(run.request.num_rows)
        self._admission.give_tokens(num_tokens(run.request))
        if run.is_suspect:
            self._quarantine.one_at_a_time.release()
        if event is not None:
            run.push(event)
        if known := self._known.pop(run.key, None):
            self._retries.end(known)

    def _everyone_left(self, run: Run) -> None:
        if run.key in self._runs:
            self._send(Abort(run.key))
            self._end(run, None)
