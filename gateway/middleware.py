"""Pure ASGI middleware: request id, timing and one log line per request; the body's limit.

Starlette's BaseHTTPMiddleware costs several times what the rest of the gateway does.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vdiff_grpc.tracing import Tracer

from . import sse
from .errors import ApiError, internal
from .metrics import GatewayMetrics
from .tracing import RequestTrace
from .upstream import AUTHORIZATION, Metadata

_log = logging.getLogger("gateway.access")

_REQUEST_ID = re.compile(rb"[\x20-\x7e]{1,128}")
# What else comes, gRPC might not carry; the server then says that there is no key.
_BEARER = re.compile(rb"(?i:bearer) [\x21-\x7e]{1,512}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(rb"[\x20-\x7e]{1,512}")

_CLIENT_CLOSED_REQUEST = 499
_PROBES = ("/health", "/metrics")


def rpc_metadata(scope: Scope) -> Metadata:
    """What the gRPC server is told of this HTTP request."""
    metadata: Metadata = scope["vdiff.metadata"]
    return metadata


def client_left(scope: Scope) -> None:
    """Notes for the log that nobody was there to take the answer."""
    scope["vdiff.status"] = _CLIENT_CLOSED_REQUEST


class RequestContext:
    """Outermost. Gives the request its id, its headers and its log line; answers our own bugs."""

    def __init__(
        self,
        app: ASGIApp,
        route_of: Callable[[Scope], str],
        sign: Callable[[Metadata], Metadata],
        metrics: GatewayMetrics,
        tracer: Tracer | None,
    ) -> None:
        self._app = app
        self._route_of = route_of
        self._sign = sign
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id, metadata = identify(scope["headers"])
        scope["vdiff.metadata"] = self._sign(metadata)
        trace = RequestTrace(self._tracer, scope, metadata)
        status = 0
        streams = False
        self._metrics.begun()

        async def send_with_headers(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = int((time.perf_counter() - begin) * 1000)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % elapsed_ms),
                ]
                streams = sse.HEADERS[0] in message["headers"]
            elif streams:
                streams = False
                self._metrics.first_event(self._route_of(scope), time.perf_counter() - begin)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("unhandled error", extra={"fields": {"request_id": request_id}})
            if not status:
                await send_error(internal(), send_with_headers)
        finally:
            elapsed_s = time.perf_counter() - begin
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": self._route_of(scope),
                "status": scope.get("vdiff.status", status),
                "ms": round(elapsed_s * 1000, 1),
            }
            about = (fields["method"], fields["route"], fields["status"])
            self._metrics.ended(*about, elapsed_s, trace.exemplar)
            trace.end(request_id, *about)
            if caller := scope.get("vdiff.caller"):
                fields["caller"] = caller
            # A probe comes every few seconds.
            quiet = fields["status"] == 200 and fields["route"].startswith(_PROBES)
            _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


class BodyLimit:
    """Refuses bodies of more than `max_bytes`, by their announced length or as they come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = _header(scope["headers"], b"content-length") or b""
        too_large = announced.isdigit() and int(announced) > self._max_bytes
        num_bytes = 0

        async def limited_receive() -> Message:
            nonlocal num_bytes
            if too_large:
                raise self._error()
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._error()
            return message

        await self._app(scope, limited_receive, send)

    def _error(self) -> ApiError:
        return ApiError(
            413,
            f"the request body exceeds the limit of {self._max_bytes} bytes",
            code="request_too_large",
        )


async def send_error(error: ApiError, send: Send) -> None:
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *((k.encode(), v.encode()) for k, v in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def identify(headers: Any) -> tuple[str, Metadata]:
    """The request's id (the caller's when it is fit to be one) and the metadata to send on."""
    given = _header(headers, b"x-request-id")
    if given and _REQUEST_ID.fullmatch(given):
        request_id = given.decode()
    else:
        request_id = f"req_{secrets.token_hex(16)}"
    metadata = [("x-request-id", request_id)]
    key = _header(headers, b"authorization")
    if key and _BEARER.fullmatch(key):
        metadata.append((AUTHORIZATION, key.decode()))
    trace = _header(headers, b"traceparent")
    if trace and _TRACEPARENT.fullmatch(trace):
        metadata.append(("traceparent", trace.decode()))
        state = _header(headers, b"tracestate")
        if state and _TRACESTATE.fullmatch(state):
            metadata.append(("tracestate", state.decode()))
    return request_id, tuple(metadata)


def _header(headers: Any, name: bytes) -> bytes | None:
    value: bytes
    for key, value in headers:
        if key == name:
            return value
    return None
