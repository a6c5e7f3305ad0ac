"""Gateways for tests: real HTTP on loopback at a free port, over real servers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from gateway.app import Gateway
from gateway.config import GatewayConfig
from tests.conftest import RunningServer, running, tiny_config

# All tests call from one address.
DEFAULTS = {"grace_s": 5.0, "requests_per_minute": 0}


class RunningGateway:
    """A Gateway on a loop in a thread of its own."""

    def __init__(self, server: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-loop")
        self._thread.start()
        config = GatewayConfig(port=0, server=server, **(DEFAULTS | settings))
        self.gateway: Gateway = self.call(Gateway.start(config))
        self.url = self.gateway.url

    def call(self, coroutine: Any, timeout_s: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def close(self) -> None:
        self.call(self.gateway.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def demo() -> Iterator[RunningServer]:
    """The embedded model: it has a tokenizer and a chat template."""
    with running(tiny_config(model="demo", served_model_name=("demo", "demo-alias"))) as server:
        yield server


@pytest.fixture(scope="session")
def gateway(demo: RunningServer) -> Iterator[RunningGateway]:
    gateway = RunningGateway(demo.address)
    yield gateway
    gateway.close()


@pytest.fixture
def gateway_over() -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways over a given address, and ends them after the test."""
    gateways: list[RunningGateway] = []

    def start(server: str, **settings: Any) -> RunningGateway:
        gateways.append(RunningGateway(server, **settings))
        return gateways[-1]

    yield start
    for gateway in gateways:
        gateway.close()


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def aclient(gateway: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for what another process or thread brings about."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
