"""The engine's process is killed again and again under load: no call hangs, none is wrong."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable

import pytest

from tests.chaos.load import HANG_S, Load, until
from tests.conftest import RunningServer
from vdiff_grpc.client import AsyncClient

NUM_STREAMS = 32
NUM_UNARY = 8
# Seconds of kills, each soon after the engine has come back.
SPANS_S = [0.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(400)])]
PAUSE_S = 2.0


@pytest.mark.parametrize("span_s", SPANS_S)
async def test_every_call_ends_with_its_answer_or_unavailable_and_retries_complete_all(
    serve: Callable[..., RunningServer], span_s: float
) -> None:
    server = serve(engine="process", max_running_rows=16, max_waiting_rows=64)
    load = Load()
    async with (
        AsyncClient(server.address, retries=None) as impatient,
        AsyncClient(
            server.address, balanced=True, wait_for_ready=True, timeout_s=HANG_S
        ) as patient,
        asyncio.TaskGroup() as tasks,
    ):
        await load.learn(impatient)
        for _ in range(NUM_STREAMS):
            tasks.create_task(load.repeat("stream", load.stream, impatient))
        for _ in range(NUM_UNARY):
            tasks.create_task(load.repeat("retried", load.unary, patient))
        try:
            num_kills = await _kill_for(span_s, load)
            await _both_go_on(load)
        finally:
            load.stopped.set()
    print(f"{num_kills} kills in {span_s:g} s, then: {dict(sorted(load.outcomes.items()))}")
    assert not load.wrong, load.wrong[:10]
    assert load.outcomes["stream UnavailableError"] > 0, "no kill has met an open call"
    assert load.outcomes["retried UnavailableError"] == 0
    await asyncio.to_thread(server.wait_idle)
    now = server.statistics()
    assert (now.running_rows, now.waiting_rows) == (0, 0)


async def _kill_for(span_s: float, load: Load) -> int:
    """Kills every engine that has begun to answer, until the time is over; at least one."""
    num_kills = 0
    end = time.monotonic() + span_s
    while num_kills == 0 or time.monotonic() < end:
        await _both_go_on(load)
        await asyncio.sleep(0 if span_s < 10 else PAUSE_S)
        [engine] = multiprocessing.active_children()
        engine.kill()
        await until(lambda gone=engine: not gone.is_alive())
        num_kills += 1
    return num_kills


async def _both_go_on(load: Load) -> None:
    """Until as many calls as may be open have been answered, so that all are new ones."""
    goals = {"stream": NUM_STREAMS, "retried": NUM_UNARY}
    reached = {name: load.num(name) + goal for name, goal in goals.items()}
    await until(lambda: all(load.num(name) >= goal for name, goal in reached.items()), 100)
