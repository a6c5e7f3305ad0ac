"""The gateway's spans: one for an HTTP request, one for each call that it makes of the server.

Only where spans are exported; else the client's own trace context goes on to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
import grpc.aio
from starlette.types import Scope

from vdiff_grpc import telemetry, tracing, v1
from vdiff_grpc.tracing import Span, TraceContext, Tracer

from .upstream import Metadata

_TRACED = "/v1/"  # not the probes and pages
_FAILED = 500
_T = TypeVar("_T")

# The HTTP request's, in whose task we are.
_request_span: ContextVar[Span | None] = ContextVar("request_span", default=None)


class RequestTrace:
    """Of one HTTP request. tracer: None where no spans are exported. Log lines of its task name its
    trace from now on."""

    def __init__(self, tracer: Tracer | None, scope: Scope, metadata: Metadata) -> None:
        given = dict(metadata)
        self.context: TraceContext | None = None
        self._span: Span | None = None
        if tracing.TRACEPARENT in given:
            state = given.get(tracing.TRACESTATE, "")
            self.context = tracing.parse(given[tracing.TRACEPARENT], state)
        if tracer is not None and scope["path"].startswith(_TRACED):
            method = telemetry.http_method(scope["method"])
            attributes = {telemetry.HTTP_METHOD: method, telemetry.URL_SCHEME: scope["scheme"]}
            self._span = tracer.begin(method, self.context, attributes)
            self.context = self._span.place
        _request_span.set(self._span)
        tracing.current.set(self.context)

    @property
    def exemplar(self) -> dict[str, str] | None:
        return self._span.place.exemplar if self._span is not None else None

    def end(self, request_id: str, method: str, route: str, status: int) -> None:
        if self._span is None:
            return
        self._span.end(
            name=f"{telemetry.http_method(method)} {route}",
            attributes={
                telemetry.HTTP_ROUTE: route,
                telemetry.HTTP_STATUS: status,
                telemetry.REQUEST_ID: request_id,
            },
            error=str(status) if status >= _FAILED else "",
        )


def traced(stub: _T, service: str) -> _T:
    """The same stub, each of whose calls has a span: a retry is another. service: its short name.

    Its methods take the request, timeout and metadata, and are awaited or read as the stub's own.
    """
    made: Any = _Stub()
    descriptor = v1.generation_pb2.DESCRIPTOR.services_by_name[service]
    for method in descriptor.methods:
        wrap = _streaming if method.server_streaming else _unary
        name = f"{descriptor.full_name}/{method.name}"
        setattr(made, method.name, wrap(getattr(stub, method.name), name))
    wrapped: _T = made
    return wrapped


class _Stub:
    """Holds methods."""


def _unary(send: Callable[..., Any], method: str) -> Any:
    async def call(request: Any, *, timeout: float | None, metadata: Metadata) -> Any:  # noqa: ASYNC109
        span = _CallSpan(method)
        try:
            reply = await send(request, timeout=timeout, metadata=span.sent_with(metadata))
        except BaseException as error:
            span.failed(error)
            raise
        span.end(grpc.StatusCode.OK)
        return reply

    return call


def _streaming(send: Callable[..., Any], method: str) -> Any:
    def call(request: Any, *, timeout: float | None, metadata: Metadata) -> _Stream:
        span = _CallSpan(method)
        return _Stream(send(request, timeout=timeout, metadata=span.sent_with(metadata)), span)

    return call


class _Stream:
    """As much of a gRPC stream as the gateway uses."""

    def __init__(self, call: Any, span: _CallSpan) -> None:
        self._call = call
        self._span = span

    async def read(self) -> Any:
        try:
            event = await self._call.read()
        except BaseException as error:
            self._span.failed(error)
            raise
        if event is grpc.aio.EOF:
            self._span.end(grpc.StatusCode.OK)
        return event

    def cancel(self) -> None:
        self._span.end(grpc.StatusCode.CANCELLED)
        self._call.cancel()


class _CallSpan:
    """Ended once; what comes later is ignored."""

    def __init__(self, method: str) -> None:
        parent = _request_span.get()
        self._span: Span | None = None
        if parent is not None:
            attributes = {telemetry.RPC_SYSTEM: telemetry.GRPC, telemetry.RPC_METHOD: method}
            self._span = parent.child(method, kind="client", attributes=attributes)

    def sent_with(self, metadata: Metadata) -> Metadata:
        """The metadata with this span in place of what the client sent."""
        if self._span is None:
            return metadata
        own = (tracing.TRACEPARENT, tracing.TRACESTATE)
        others = (pair for pair in metadata if pair[0] not in own)
        return (*others, *self._span.place.metadata)

    def failed(self, error: BaseException) -> None:
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        self.end(code or grpc.StatusCode.CANCELLED)

    def end(self, code: grpc.StatusCode) -> None:
        if self._span is not None:
            # For a client every other code than OK is an error.
            error = "" if code is grpc.StatusCode.OK else code.name
            self._span.end(attributes={telemetry.RPC_STATUS: code.name}, error=error)
            self._span = None
