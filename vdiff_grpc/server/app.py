"""A server's life: listen, load, serve, drain, stop. Knows nothing of requests.

It listens before the weights load, so that health checks and GetModelInfo are answered. Health of
our services follows the engine; the empty name is SERVING for as long as the event loop answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from dataclasses import fields
from functools import partial

from grpc import aio

from vdiff_grpc import telemetry, tracing, v1, vllm
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.errors import CheckpointError, VdiffError
from vdiff_grpc.keys import KeyFileError, KeyRing
from vdiff_grpc.server import logs, vllm_service
from vdiff_grpc.server.async_engine import AsyncEngine
from vdiff_grpc.server.auth import Gatekeeper
from vdiff_grpc.server.health import SERVICES, Health, add_channelz, add_reflection
from vdiff_grpc.server.interceptors import CallInterceptor
from vdiff_grpc.server.metrics_page import MetricsPage
from vdiff_grpc.server.observer import Observer
from vdiff_grpc.server.rate_limit import RateLimits
from vdiff_grpc.server.runs import Care
from vdiff_grpc.server.service import VERSION, GenerationService, ModelService
from vdiff_grpc.server.supervisor import EngineKind
from vdiff_grpc.server.tls import Certificates, TlsError, TlsFiles
from vdiff_grpc.tracing import TelemetryError

logger = logging.getLogger(__name__)

# Health watches and reflection streams never end by themselves.
_LAST_WORDS_S = 0.5


class AddressError(VdiffError):
    """The address cannot be listened on."""

    reason = "ADDRESS"


class Server:
    """One server: `start`, `ready`, then `drain` and `stop`. Made and used on one event loop."""

    def __init__(self, config: ServerConfig, *, engine: EngineKind = "process") -> None:
        """Raises KeyFileError, TlsError or TelemetryError."""
        self.config = config
        self.address = ""
        self.metrics_address = ""  # empty: there are none
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        self._failed = asyncio.Event()
        observer = self._observer = Observer(config.served_names, VERSION)
        self._calls = CallInterceptor(observer)
        ring = KeyRing(config.api_keys) if config.api_keys else None
        self._gatekeeper = Gatekeeper(ring, RateLimits(), observer.refused)
        self._certificates = _certificates(config)
        self._engine = AsyncEngine(
            config.engine_config(),
            Care(**{option.name: getattr(config, option.name) for option in fields(Care)}),
            kind=engine,
            configure=partial(logs.configure, config.log_format, config.log_level),
            on_change=self._changed.set,
            on_step=observer.stepped,
        )
        observer.watch(self._engine)
        self._metrics = MetricsPage(observer.meters.page)
        self._grpc = aio.server(
            interceptors=[self._gatekeeper, self._calls],
            options=[
                # On by default: a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.enable_channelz", int(config.channelz)),
                ("grpc.max_send_message_length", -1),
                # gRPC's own answer to a client's keep-alive on a silent call is to end it
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                *_connection_age(config),
            ],
        )
        self._services = (*SERVICES, vllm_service.NAME) if config.vllm_service else SERVICES
        self._health = Health(self._grpc, self._services)
        self._exporting = tracing.exporting(os.environ, telemetry.SERVER, observer.meters)
        if self._exporting is not None:
            observer.tracer = self._exporting.tracer
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens and begins to load. Raises AddressError or CheckpointError."""
        generation, model = GenerationService(self._engine), ModelService(self._engine, self.config)
        v1.add_GenerationServiceServicer_to_server(generation, self._grpc)
        v1.add_ModelServiceServicer_to_server(model, self._grpc)
        if self.config.vllm_service:
            engine = vllm_service.VllmEngine(self._engine)
            vllm.add_VllmEngineServicer_to_server(engine, self._grpc)
        if self.config.reflection:
            add_reflection(self._grpc, self._services)
        if self.config.channelz:
            add_channelz(self._grpc)
        self._listen()
        await self._show_metrics()
        await self._health.set_ready(False)
        await self._grpc.start()
        logger.info("listening on %s, loading %s", self.address, self.config.model)
        self._warn_of_open_doors()
        self._follower = asyncio.create_task(self._follow_engine())
        try:
            await self._engine.start()
        except BaseException:
            await self.stop(at_once=True)
            raise

    async def ready(self) -> None:
        """Waits until the engine has become READY once. Raises CheckpointError if it cannot."""
        failed = asyncio.create_task(self.failed())
        ready = asyncio.create_task(self._ready.wait())
        await _first_of(failed, ready)
        if self._failed.is_set():
            raise CheckpointError(self._engine.state_detail)

    async def failed(self) -> str:
        """Waits until the engine proves unable to load; gives the reason."""
        await self._failed.wait()
        return self._engine.state_detail

    async def idle(self) -> None:
        """Waits until no call is open."""
        await self._calls.idle()

    async def drain(self) -> None:
        """Health says NOT_SERVING; after drain_delay_s no new calls; open ones have grace_s."""
        self._engine.leave()
        if self._ready.is_set():
            await asyncio.sleep(self.config.drain_delay_s)
        self._engine.drain()
        logger.info("draining, %d calls open", self._calls.num_open)
        try:
            await asyncio.wait_for(self.idle(), self.config.grace_s)
        except TimeoutError:
            grace_s = self.config.grace_s
            logger.warning("%d calls still open after %g s", self._calls.num_open, grace_s)

    async def stop(self, *, at_once: bool = False) -> None:
        """Ends everything. Calls that are still open get UNAVAILABLE."""
        self._engine.drain()
        self._engine.end_open_requests("the server has stopped")
        await self._grpc.stop(None if at_once else _LAST_WORDS_S)
        await self._engine.stop(0.0 if at_once else 5.0)
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._metrics.stop()
        if self._exporting is not None:
            await asyncio.to_thread(self._exporting.shutdown)
        logger.info("stopped")

    async def _show_metrics(self) -> None:
        """Raises AddressError."""
        host, port = self.config.metrics_host or self.config.host, self.config.metrics_port
        if not port:
            return
        shown = f"[{host}]" if ":" in host else host
        try:
            await self._metrics.start(host, port)
        except OSError as error:
            raise AddressError(
                f"cannot show metrics on {shown}:{port}: {error.strerror or error}; "
                "see --metrics-host and --metrics-port"
            ) from None
        self.metrics_address = f"{shown}:{port}"
        logger.info("metrics on http://%s/metrics", self.metrics_address)

    def _listen(self) -> None:
        host, port = self.config.host, self.config.port
        shown = f"[{host}]" if ":" in host else host
        try:
            if self._certificates is None:
                port = self._grpc.add_insecure_port(f"{shown}:{port}")
            else:
                credentials = self._certificates.credentials()
                port = self._grpc.add_secure_port(f"{shown}:{port}", credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise AddressError(
                f"cannot listen on {shown}:{self.config.port}: the port is taken or the address "
                "is not one of this machine; see --host and --port"
            )
        self.address = f"{shown}:{port}"

    def _warn_of_open_doors(self) -> None:
        config = self.config
        if _is_loopback(config.host):
            return
        if config.api_keys and self._certificates is None:
            logger.warning("API keys cross the network in the clear: see --tls-cert")
        if not (config.api_keys or config.tls_client_ca):
            logger.warning("whoever reaches %s may use it: see --api-keys", self.address)

    async def _follow_engine(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._health.set_ready(self._engine.ready)
            if self._engine.failed:
                self._failed.set()
            if self._engine.ready and not self._ready.is_set():
                name = self._engine.names[0]
                logger.info("vdiff-grpc %s serving %s on %s", VERSION, name, self.address)
                self._ready.set()


async def serve(config: ServerConfig) -> int:
    """Serves until SIGTERM or SIGINT, and gives the exit code. A second signal ends at once."""
    logs.configure(config.log_format, config.log_level)
    told, told_again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (told_again if told.is_set() else told).set())
    try:
        server = Server(config)
    except (KeyFileError, TelemetryError, TlsError) as error:
        logger.error("%s", error)
        return 1
    life = asyncio.create_task(_live(server, told))
    hurry = asyncio.create_task(told_again.wait())
    await _first_of(life, hurry)
    if life.cancelled():
        logger.warning("told to stop twice: ending at once")
        await server.stop(at_once=True)
        return 1
    return life.result()


async def _live(server: Server, told: asyncio.Event) -> int:
    try:
        await server.start()
    except (AddressError, CheckpointError) as error:
        logger.error("%s", error)
        return 1
    failed = asyncio.create_task(server.failed())
    await _first_of(failed, asyncio.create_task(told.wait()))
    if not failed.cancelled():
        await server.stop(at_once=True)
        return 1
    await server.drain()
    await server.stop()
    return 0


def _connection_age(config: ServerConfig) -> list[tuple[str, int]]:
    """gRPC's options for what is not 0, in milliseconds."""
    ages = (
        ("grpc.max_connection_age_ms", config.max_connection_age_s),
        ("grpc.max_connection_age_grace_ms", config.max_connection_age_grace_s),
    )
    return [(option, max(1, round(age_s * 1e3))) for option, age_s in ages if age_s]


def _certificates(config: ServerConfig) -> Certificates | None:
    if not (config.tls_cert or config.tls_key or config.tls_client_ca):
        return None
    return Certificates(TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _first_of(one: asyncio.Task[object], other: asyncio.Task[object]) -> None:
    """Waits for the first to end and cancels the other; both, when itself cancelled."""
    try:
        await asyncio.wait({one, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        one.cancel()
        other.cancel()
        # Not `await one` with CancelledError suppressed: that would swallow our own.
        await asyncio.gather(one, other, return_exceptions=True)
