"""The gateway's life: routes put together, listening, draining on SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from vdiff_grpc import telemetry, tracing
from vdiff_grpc.keys import KeyFileError, KeyRing
from vdiff_grpc.tracing import TelemetryError

from . import docs, playground, routes
from .access import AccessControl, key_ring
from .config import GatewayConfig, load_config, split
from .credentials import CredentialError, ServerCertificate
from .errors import ApiError, internal, own_key_refused, unknown_url
from .exchange import OpenExchanges
from .logs import configure_logging
from .metrics import GatewayMetrics
from .middleware import BodyLimit, RequestContext
from .routes import Gate, InfoEndpoints
from .tracing import traced
from .upstream import Upstream
from .writes import JoiningProtocol

_log = logging.getLogger(__name__)

# Headers that a page of another origin may read.
_EXPOSED = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


def create_app(gate: Gate, config: GatewayConfig, ring: KeyRing | None = None) -> ASGIApp:
    """The ASGI application over an upstream; it has no lifespan of its own.

    ring: the keys that clients must show; None lets everybody in.
    """
    info = InfoEndpoints(gate)
    table = [
        Route("/v1/completions", routes.completions(gate), methods=["POST"]),
        Route("/v1/chat/completions", routes.chat_completions(gate), methods=["POST"]),
        Route("/v1/fim/completions", routes.fim_completions(gate), methods=["POST"]),
        Route("/v1/responses", routes.responses(gate), methods=["POST"]),
        Route("/v1/responses/{response_id}", routes.NothingStored(), methods=["GET", "DELETE"]),
        Route("/v1/responses/{response_id}/cancel", routes.NothingStored(), methods=["POST"]),
        Route("/v1/responses/{response_id}/input_items", routes.NothingStored(), methods=["GET"]),
        Route("/v1/models", info.models),
        Route("/v1/models/{model:path}", info.model),
        Route("/health", info.health),
        Route("/health/live", info.live),
        Route("/health/ready", info.ready),
        Route("/version", info.version),
        Route("/metrics", gate.metrics.endpoint),
        Route("/openapi.json", docs.openapi_json),
        Route("/docs", docs.docs),
        Route("/redoc", docs.redoc),
        Route("/playground", playground.page),
        *playground.FILES,
    ]
    paths: dict[Any, str] = {route.endpoint: route.path_format for route in table}

    async def answer_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if gate.upstream.has_own_key and error.status in (401, 403):
            _log.error("the server refuses the gateway's own key: %s", error)
            error = own_key_refused()
        return await _answer_api_error(request, error)

    app = Starlette(
        routes=table,
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_bug,
        },
    )

    def route_of(scope: Scope) -> str:
        return paths.get(scope.get("endpoint"), "unknown")

    # What makes the model work goes past Starlette, which costs a tenth of it.
    direct = {route.path: route.endpoint for route in table if route.methods == {"POST"}}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = direct.get(scope.get("path", "")) if scope.get("method") == "POST" else None
        if endpoint is None:
            await app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        try:
            await endpoint(scope, receive, send)
        except ApiError as error:
            await (await answer_api_error(Request(scope), error))(scope, receive, send)

    metrics = gate.metrics
    inner: ASGIApp = BodyLimit(dispatch, config.max_body_bytes)
    inner = AccessControl(inner, ring, config.requests_per_minute, metrics.rate_limited)
    if config.cors_origins:
        inner = CORSMiddleware(
            inner,
            split(config.cors_origins),
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    outer: Any = RequestContext(inner, route_of, gate.upstream.signed, metrics, gate.tracer)
    if config.trusted_proxies:
        outer = ProxyHeadersMiddleware(outer, split(config.trusted_proxies))
    application: ASGIApp = outer
    return application


class Gateway:
    """A gateway that listens: `gateway = await Gateway.start(config)`, then `stop`."""

    def __init__(self, config: GatewayConfig, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        self._hurried = asyncio.Event()
        # Before the channel, which would have to be closed again.
        self._certificate = (
            ServerCertificate(config.tls_cert, config.tls_key) if config.tls_cert else None
        )
        ring = key_ring(config.api_keys) if config.api_keys else None
        metrics = GatewayMetrics()
        # Before the channel, too.
        self._exporting = tracing.exporting(os.environ, telemetry.GATEWAY, metrics.meters)
        tracer = self._exporting.tracer if self._exporting is not None else None
        upstream = Upstream(config, metrics.retried, *((traced,) if tracer is not None else ()))
        self._gate = Gate(upstream, OpenExchanges(), metrics, tracer)
        self._follower: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                create_app(self._gate, config, ring),
                http=JoiningProtocol,
                proxy_headers=False,  # ours, if any: this would trust whoever is on this machine
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
                # Longer than a load balancer keeps an idle connection.
                timeout_keep_alive=75,
                # A backstop: open exchanges are ended at grace_s by ourselves.
                timeout_graceful_shutdown=math.ceil(config.grace_s) + 5,
            )
        )

    @classmethod
    async def start(cls, config: GatewayConfig) -> Gateway:
        """Listens when it returns. Raises OSError when the address cannot be had,
        CredentialError, KeyFileError and TelemetryError."""
        listener = _listen(config.host, config.port)
        try:
            gateway = cls(config, listener)
        except (CredentialError, KeyFileError, TelemetryError):
            listener.close()
            raise
        gateway._serving = asyncio.create_task(
            gateway._server.serve(sockets=[gateway._listener]), name="gateway"
        )
        await gateway._server.listening.wait()
        if gateway._certificate is not None:
            context = gateway._server.config.ssl
            assert context is not None
            gateway._follower = asyncio.create_task(gateway._certificate.follow(context))
        return gateway

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def drain(self) -> None:
        """Says 'not ready' for `drain_delay_s`, while requests are still taken."""
        self._gate.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), self._config.drain_delay_s)

    async def stop(self) -> None:
        """Takes no more connections; open exchanges have `grace_s` to finish."""
        self._gate.draining = True
        self._server.should_exit = True
        grace_s = 0.0 if self._hurried.is_set() else self._config.grace_s
        timer = asyncio.get_running_loop().call_later(grace_s, self._gate.open_exchanges.end_all)
        try:
            await self._serving
        finally:
            timer.cancel()
            if self._follower is not None:
                self._follower.cancel()
            await self._gate.upstream.close()
            if self._exporting is not None:
                await asyncio.to_thread(self._exporting.shutdown)

    def stop_now(self) -> None:
        """Ends all open exchanges; for a second signal while `drain` or `stop` waits."""
        self._hurried.set()
        self._gate.open_exchanges.end_all()

    _serving: asyncio.Task[None]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vdiff-gateway`."""
    config = load_config(argv)
    configure_logging(config.log_format, config.log_level)
    loop_factory = uvicorn.Config(
        "", log_config=None
    ).get_loop_factory()  # uvloop where there is one
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(config))


async def _serve(config: GatewayConfig) -> int:
    stopping = asyncio.Event()
    try:
        gateway = await Gateway.start(config)
    except OSError as error:
        _log.error("cannot listen on %s:%d: %s", config.host, config.port, error.strerror)
        return 1
    except (CredentialError, KeyFileError, TelemetryError) as error:
        _log.error("%s", error)
        return 1

    def stop() -> None:
        if stopping.is_set():
            gateway.stop_now()
        stopping.set()

    _on_signals(stop)
    _log.info("listening on %s, in front of %s", gateway.url, config.server)
    await stopping.wait()
    _log.info("stopping")
    await gateway.drain()
    await gateway.stop()
    _log.info("stopped")
    return 0


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


class _Server(uvicorn.Server):
    """Tells when it listens, and leaves signals to us: uvicorn would end with the signal itself."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(
        error.body(), error.status, headers=error.headers, media_type="application/json"
    )


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette itself says: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        ours = unknown_url(what)
    elif error.status_code == 405:
        ours = ApiError(
            405, f"this URL does not take {request.method}: {what}", code="method_not_allowed"
        )
    else:
        ours = ApiError(error.status_code, error.detail)
    ours.headers.update(error.headers or {})
    return await _answer_api_error(request, ours)


async def _answer_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again; RequestContext logs it.
    return await _answer_api_error(request, internal())


if __name__ == "__main__":
    sys.exit(main())
