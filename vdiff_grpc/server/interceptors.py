"""What every call of ours gets: an id, errors as statuses, one log line at its end.

The servicers behind it are given a Call where gRPC would give its context. The services
that are not ours pass by uncounted. Prompts and generated text never enter the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from vdiff_grpc import telemetry
from vdiff_grpc.engine.events import Finished
from vdiff_grpc.errors import (
    DeadlineError,
    EngineFaultError,
    InvalidRequestError,
    VdiffError,
)
from vdiff_grpc.keys import RIGHTS
from vdiff_grpc.server import auth, logs, status
from vdiff_grpc.server.borrowed import Broken, Handler, broken, guarded, lenient
from vdiff_grpc.server.call_trace import CallTrace
from vdiff_grpc.server.convert import requests
from vdiff_grpc.server.observer import Observer
from vdiff_grpc.server.rate_limit import Allowance

logger = logging.getLogger(__name__)

_NO_DEADLINE_S = 1e8  # gRPC gives a far future where a caller gave no deadline
_REQUEST_ID = "x-request-id"
_LOGGED = ("GenerationService/", "VllmEngine/Generate", "VllmEngine/Abort")

Context = aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One call. The servicer fills in what it learns; the log line shows it."""

    rpc: str
    request_id: str
    caller: str = ""  # the key's name, or the certificate's; empty: nobody has asked for one
    rights: frozenset[str] = frozenset(RIGHTS)
    min_priority: int = 0
    latency_budget_s: float | None = None
    peer: str = ""  # as gRPC names it: ipv4:127.0.0.1:53412
    allowance: Allowance = field(default_factory=Allowance)
    deadline_ns: int | None = None  # time.monotonic_ns()
    model: str = ""
    tokens: int | None = None
    forwards: int | None = None
    queue_ms: float | None = None
    trace: CallTrace | None = None
    operation: str = telemetry.TEXT_COMPLETION
    prompt_tokens: int = 0
    finished: Finished | None = None  # unless kept from an earlier call
    reason: str = ""  # finish reasons, or the error's

    def may(self, right: str) -> bool:
        return right in self.rights


class CallInterceptor(aio.ServerInterceptor):
    """Wraps our services' handlers, and knows how many calls are open."""

    def __init__(self, observer: Observer) -> None:
        self.num_open = 0
        self._observer = observer
        self._idle = asyncio.Event()
        self._idle.set()
        self._wrapped: dict[str, Handler] = {}

    async def idle(self) -> None:
        """Waits until no call is open."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        rpc = handler_call_details.method
        if rpc in self._wrapped:
            return self._wrapped[rpc]
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        ours = rpc.startswith(auth.OURS)
        self._wrapped[rpc] = self._wrap(auth.short(rpc), handler) if ours else guarded(rpc, handler)
        return self._wrapped[rpc]

    def _wrap(self, rpc: str, handler: Handler) -> Handler:
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(rpc, handler.unary_stream),
                lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(rpc, handler.unary_unary),
            lenient(handler.request_deserializer),
            handler.response_serializer,
        )

    def _unary(self, rpc: str, behaviour: Any) -> Any:
        async def answer(request: Message, call: Call, context: Context) -> Message:
            reply: Message = await behaviour(request, call)
            await _name(call, context)
            return reply

        async def handle(request: Message, context: Context) -> Message | None:
            return await self._handle(rpc, answer, request, context)

        return handle

    def _streaming(self, rpc: str, behaviour: Any) -> Any:
        async def answer(request: Message, call: Call, context: Context) -> None:
            # Written here, not yielded: a caller who leaves is then always a CancelledError at
            # an await, and the generator's clean-up runs at once.
            replies: AsyncIterator[Message] = behaviour(request, call)
            named = False
            async with aclosing(replies):  # type: ignore[type-var]
                async for reply in replies:
                    if not named:
                        await _name(call, context)
                        named = True
                    await context.write(reply)

        # gRPC takes a coroutine for a handler that writes for itself.
        async def handle(request: Message, context: Context) -> None:
            await self._handle(rpc, answer, request, context)

        return handle

    async def _handle(
        self,
        rpc: str,
        answer: Callable[[Message, Call, Context], Awaitable[Message | None]],
        request: Message,
        context: Context,
    ) -> Message | None:
        self.num_open += 1
        self._idle.clear()
        arrival_ns = time.monotonic_ns()
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        call = _met(rpc, context)
        call.trace = self._observer.begun(rpc, metadata)
        code = grpc.StatusCode.OK
        try:
            try:
                await self._introduce(call, request, context, metadata)
                return await answer(request, call, context)
            except status.EXPECTED as error:
                code = status.code_of(error)
                call.reason = _reason(error)
                if not isinstance(error, DeadlineError):
                    call.allowance.refund()
                await context.abort_with_status(status.to_status(error, _named(call)))
            except Exception:
                fault = EngineFaultError(uuid.uuid4().hex[:12])
                code, call.reason = status.code_of(fault), fault.reason
                logger.exception("fault %s in %s, request %s", fault.fault_id, rpc, call.request_id)
                call.allowance.refund()
                await context.abort_with_status(status.to_status(fault, _named(call)))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            if call.deadline_ns is not None and time.monotonic_ns() >= call.deadline_ns:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self._idle.set()
            total_ns = time.monotonic_ns() - arrival_ns
            self._observer.ended(call, code, total_ns / 1e9)
            _log(call, code, total_ns)

    async def _introduce(
        self,
        call: Call,
        request: Message | Broken,
        context: Context,
        metadata: dict[str, str],
    ) -> None:
        """Names the call, and refuses what no handler could honour."""
        sent = None if isinstance(request, Broken) else request
        call.request_id = requests.request_id(sent, metadata)
        if isinstance(request, Broken):
            raise broken()
        requests.refuse_unknown_fields(request)
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s < _NO_DEADLINE_S:
            if remaining_s <= 0:
                raise DeadlineError("the deadline had passed when the call arrived")
            call.deadline_ns = time.monotonic_ns() + int(remaining_s * 1e9)


def _met(rpc: str, context: Context) -> Call:
    """A call of whom the gatekeeper has let in."""
    visit = auth.visit()
    caller = visit.caller
    if caller is auth.ANONYMOUS:
        caller = auth.certified(context) or caller
    return Call(
        rpc,
        uuid.uuid4().hex,
        caller=caller.name,
        rights=caller.rights,
        min_priority=caller.min_priority,
        latency_budget_s=caller.latency_budget_s,
        peer=context.peer(),
        allowance=visit.allowance,
    )


def _named(call: Call) -> tuple[str, str]:
    return (_REQUEST_ID, call.request_id)


async def _name(call: Call, context: Context) -> None:
    """Tells the caller the call's name. Not before the first reply: gRPC retries no call of which
    anything has come, and a refusal has it in its trailing metadata."""
    await context.send_initial_metadata((_named(call),))


def _reason(error: VdiffError) -> str:
    """The reason, and for a bad request the fields; not the texts, which may quote a prompt."""
    if not isinstance(error, InvalidRequestError):
        return error.reason
    names = ",".join(violation.field for violation in error.violations[:8])
    return f"{error.reason}:{names}"


def _log(call: Call, code: grpc.StatusCode, total_ns: int) -> None:
    fields = {
        "request_id": call.request_id,
        "rpc": call.rpc,
        "caller": call.caller,
        "model": logs.one_line(call.model),
        "code": code.name,
        "reason": logs.one_line(call.reason),
        "tokens": call.tokens,
        "forwards": call.forwards,
        "queue_ms": call.queue_ms,
        "total_ms": round(total_ns / 1e6, 2),
    }
    given = {name: value for name, value in fields.items() if value not in (None, "")}
    level = logging.INFO if call.rpc.startswith(_LOGGED) else logging.DEBUG
    logger.log(level, "request", extra={"fields": given})
