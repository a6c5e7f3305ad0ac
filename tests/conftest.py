"""Servers for tests: real gRPC on loopback at a free port, on a loop in a thread of their own.

The server is imported when first asked for: tests of other parts do not load it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import hypothesis
import pytest

from vdiff_grpc import v1
from vdiff_grpc.config import ServerConfig

if TYPE_CHECKING:
    from vdiff_grpc.server.app import Server
    from vdiff_grpc.server.supervisor import EngineKind

# Tiny models gain nothing from threads, and lose much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Many servers at a time: each test that reads metrics takes a port of its own.
os.environ.setdefault("VDIFF_METRICS_PORT", "0")

# How long an example takes depends on who else uses the machine. What hangs, pytest's timeout ends.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

TINY = Path(__file__).parent / "golden" / "data" / "tiny-llada"

_T = TypeVar("_T")


class RunningServer:
    """A Server in this process, for tests that are not on its loop."""

    def __init__(self, config: ServerConfig, engine: EngineKind = "thread") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-loop")
        self._thread.start()
        self.server = self.call(_made(config, engine))
        self.address = ""
        self.channel: grpc.Channel | None = None

    def start(self) -> None:
        """Returns while the engine loads."""
        self.call(self.server.start())
        self.address = self.server.address
        self.channel = grpc.insecure_channel(self.address)
        self.generation = v1.GenerationServiceStub(self.channel)
        self.model = v1.ModelServiceStub(self.channel)

    def wait_ready(self) -> None:
        self.call(self.server.ready())

    def call(self, awaitable: Awaitable[_T], timeout_s: float = 60.0) -> _T:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop).result(timeout_s)

    def statistics(self) -> v1.Statistics:
        return self.model.GetServerInfo(v1.GetServerInfoRequest()).statistics

    def wait_idle(self) -> None:
        """Until every call has been logged, which is after its answer has left."""
        self.call(self.server.idle())

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.call(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def tiny_config(**changes: Any) -> ServerConfig:
    """The tiny checkpoint (97 token ids, no tokenizer) in float32 on one thread."""
    options: dict[str, Any] = {
        "model": str(TINY),
        "metrics_port": 0,
        "served_model_name": ("tiny", "tiny-alias"),
        "port": 0,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "grace_s": 5.0,
    }
    return ServerConfig(**(options | changes))


@contextmanager
def running(config: ServerConfig, engine: EngineKind = "thread") -> Iterator[RunningServer]:
    server = RunningServer(config, engine)
    try:
        server.start()
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The tiny checkpoint with default limits; shared, so leave it as it was."""
    with running(tiny_config()) as server:
        yield server


@pytest.fixture(scope="session")
def server_address(server: RunningServer) -> str:
    return server.address


@pytest.fixture(scope="session")
def demo_address() -> Iterator[str]:
    """The embedded model, for what needs text; shared, so leave it as it was."""
    with running(tiny_config(model="demo", served_model_name=())) as server:
        yield server.address


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with options of their own, and ends them after the test."""
    servers: list[RunningServer] = []

    def start(
        *, engine: EngineKind = "thread", ready: bool = True, **changes: Any
    ) -> RunningServer:
        servers.append(RunningServer(tiny_config(**changes), engine))
        servers[-1].start()
        if ready:
            servers[-1].wait_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


async def _made(config: ServerConfig, engine: EngineKind) -> Server:
    from vdiff_grpc.server.app import Server

    return Server(config, engine=engine)


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable
