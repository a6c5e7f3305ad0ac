"""Who calls, and whether they may: API keys, rights and requests per minute, for every service.

Decided from the call's metadata alone, before its message is read: nothing of the model runs for
a caller who is refused. Health checks are open to all, for probes have no key. Without a key file
everybody may do everything. Keys never enter the log, nor a message.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio

from vdiff_grpc.errors import (
    PermissionDeniedError,
    RateLimitError,
    UnauthenticatedError,
    VdiffError,
)
from vdiff_grpc.keys import GENERATE, INSPECT, RIGHTS, KeyRing
from vdiff_grpc.server import logs, status
from vdiff_grpc.server.borrowed import Handler
from vdiff_grpc.server.rate_limit import Allowance, RateLimits

logger = logging.getLogger(__name__)

_AUTHORIZATION = "authorization"
_SCHEME = "bearer"
_VLLM = "/vllm.grpc.engine."
OURS = ("/vdiff.v1.", _VLLM)
_OPEN = ("/grpc.health.v1.Health/", f"{_VLLM}VllmEngine/HealthCheck")
_INSPECTED = ("/grpc.reflection.", "/grpc.channelz.", f"{_VLLM}VllmEngine/GetLoads")
# What a client needs to know before it can ask well; the replies show others' figures to `inspect`.
_ANY_RIGHT = (
    "/vdiff.v1.ModelService/GetModelInfo",
    "/vdiff.v1.ModelService/GetServerInfo",
    f"{_VLLM}VllmEngine/GetModelInfo",
    f"{_VLLM}VllmEngine/GetServerInfo",
)
# Counted as requests: what makes the server work.
_COUNTED = (
    "/vdiff.v1.GenerationService/Generate",
    "/vdiff.v1.GenerationService/StreamGenerate",
    "/vdiff.v1.ModelService/CountTokens",
    f"{_VLLM}VllmEngine/Generate",
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever calls. The name is fit for logs; empty: nobody has asked for one.

    min_priority: the smallest that its requests may have, and go first by. latency_budget_s: of
    those that say none.
    """

    name: str
    rights: frozenset[str]
    min_priority: int = 0
    latency_budget_s: float | None = None

    def may(self, right: str) -> bool:
        return right in self.rights


ANONYMOUS = Caller("", frozenset(RIGHTS))


@dataclass(frozen=True, slots=True)
class Visit:
    """What is known of a call before its message is read."""

    caller: Caller = ANONYMOUS
    allowance: Allowance = field(default_factory=Allowance)


_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)


def visit() -> Visit:
    """The present call's; in a call's own task only."""
    return _visit.get() or Visit()


class Gatekeeper(aio.ServerInterceptor):
    """The outermost interceptor. ring: None lets everybody in."""

    def __init__(
        self,
        ring: KeyRing | None,
        limits: RateLimits,
        on_refused: Callable[[str, grpc.StatusCode, str], None],
    ) -> None:
        """on_refused: told the method as it was asked for, the code and the reason."""
        self._ring = ring
        self._limits = limits
        self._on_refused = on_refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        rpc = handler_call_details.method
        if self._ring is None or rpc.startswith(_OPEN):
            return await continuation(handler_call_details)
        metadata = tuple(handler_call_details.invocation_metadata or ())
        name = ""
        try:
            entry = self._ring.find(_key(metadata))
            if entry is None:
                raise UnauthenticatedError("the API key is not valid here")
            name = entry.name
            caller = Caller(
                name, frozenset(entry.rights), entry.min_priority or 0, entry.latency_budget_s
            )
            _require(caller, rpc)
            if rpc in _COUNTED:
                self._limits.take_request(entry)
        except (UnauthenticatedError, PermissionDeniedError, RateLimitError) as error:
            self._on_refused(rpc, status.code_of(error), error.reason)
            return _refusal(rpc, name, metadata, error)
        _visit.set(Visit(caller, self._limits.allowance(entry)))
        return await continuation(handler_call_details)


def short(rpc: str) -> str:
    """A method's name for logs: without the package, where the service is ours."""
    return rpc.rpartition(".")[2] if rpc.startswith(OURS) else rpc


def certified(context: aio.ServicerContext[Any, Any]) -> Caller | None:
    """The caller by its TLS certificate's common name, where it showed one that was checked."""
    for name in context.auth_context().get("x509_common_name", ()):
        return Caller(logs.one_line(name.decode("utf-8", "replace")), frozenset(RIGHTS))
    return None


def _key(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's key. Raises UnauthenticatedError."""
    given = [value for key, value in metadata if key == _AUTHORIZATION]
    if not given:
        raise UnauthenticatedError("the call has no API key; send `authorization: Bearer KEY`")
    scheme, _, key = str(given[0]).partition(" ")
    if len(given) > 1 or scheme.lower() != _SCHEME or not key.strip():
        raise UnauthenticatedError("`authorization` must be one `Bearer KEY`")
    return key.strip()


def _require(caller: Caller, rpc: str) -> None:
    """Raises PermissionDeniedError. A method of ours that is not listed generates."""
    if rpc.startswith(_INSPECTED):
        right = INSPECT
    elif rpc.startswith(OURS) and rpc not in _ANY_RIGHT:
        right = GENERATE
    else:
        return
    if not caller.may(right):
        raise PermissionDeniedError(f"the key {caller.name} has no right to {right}")


def _refusal(
    rpc: str, name: str, metadata: Iterable[tuple[str, str | bytes]], error: VdiffError
) -> Handler:
    """A handler that refuses. One for streams of messages: gRPC then reads none before it."""
    given = {key: value for key, value in metadata if isinstance(value, str)}

    async def refuse(_: object, context: aio.ServicerContext[Any, Any]) -> None:
        fields = {
            "request_id": logs.one_line(given.get("x-request-id", "")),
            "rpc": logs.one_line(short(rpc)),
            "caller": name,
            "peer": logs.one_line(context.peer()),
            "code": status.code_of(error).name,
            "reason": error.reason,
        }
        shown = {key: value for key, value in fields.items() if value}
        logger.info("refused", extra={"fields": shown})
        await context.abort_with_status(status.to_status(error))

    return grpc.stream_stream_rpc_method_handler(refuse)
