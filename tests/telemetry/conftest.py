"""Servers and gateways whose spans and metrics go to a real receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import RunningServer, tiny_config
from tests.gateway.conftest import RunningGateway, gateway_over  # noqa: F401  # a fixture
from tests.telemetry.receiver import Receiver, receiving

DEMO = {"model": "demo", "served_model_name": ("demo", "demo-alias")}


@dataclass
class Observed:
    receiver: Receiver
    server: RunningServer
    gateway: RunningGateway
    is_open: bool = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.gateway.close()
            self.server.close()


def export_to(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """What is started from now on exports there, without delay."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """The embedded model behind a gateway, both exporting everything."""
    with receiving() as receiver:
        with pytest.MonkeyPatch.context() as patch:
            export_to(receiver, patch)
            server = RunningServer(tiny_config(**DEMO))
            server.start()
            gateway = RunningGateway(server.address)
        server.wait_ready()
        both = Observed(receiver, server, gateway)
        yield both
        both.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def observe(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Observed]]:
    """Starts the tiny checkpoint behind a gateway, with these variables, and ends them.

    server: another address for the gateway.
    """
    started: list[Observed] = []

    def start(server: str = "", **variables: str) -> Observed:
        export_to(receiver, monkeypatch, **variables)
        running = RunningServer(tiny_config())
        running.start()
        running.wait_ready()
        gateway = RunningGateway(server or running.address)
        started.append(Observed(receiver, running, gateway))
        return started[-1]

    yield start
    for one in started:
        one.close()
