"""Many short requests, a third of them left early: nothing stays behind, in either process."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
import pytest
from grpc import aio

from tests.conftest import RunningServer
from tests.server.calls import generate, ids, spec, stream
from vdiff_grpc import v1

NUM_CALLERS = 16
# Requests, then how much memory (MiB) may have grown: allocators keep some of what they had.
SIZES = [
    (300, 24),
    pytest.param(10_000, 48, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Held:
    """What the server's process and its engine's hold."""

    tasks: int
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    memory_mib: tuple[float, float]


def held(server: RunningServer) -> Held:
    [engine] = multiprocessing.active_children()
    pids = (os.getpid(), engine.pid)
    gc.collect()
    return Held(
        tasks=server.call(_num_tasks()),
        descriptors=_each(pids, lambda proc: len(list((proc / "fd").iterdir()))),
        threads=_each(pids, lambda proc: len(list((proc / "task").iterdir()))),
        memory_mib=_each(
            pids, lambda proc: int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
        ),
    )


def _each(pids: tuple[int, ...], count: Callable[[Path], float]) -> tuple:
    return tuple(count(Path(f"/proc/{pid}")) for pid in pids)


async def _num_tasks() -> int:
    return len(asyncio.all_tasks())


@pytest.mark.parametrize(("size", "grown_mib"), SIZES)
async def test_after_many_requests_and_cancels_everything_is_back_to_the_start(
    serve: Callable[..., RunningServer], size: int, grown_mib: int
) -> None:
    server = serve(engine="process", max_running_rows=8, max_waiting_rows=64)
    random = Random(44)
    outcomes: Counter[str] = Counter()
    async with aio.insecure_channel(server.address) as channel:
        stub = v1.GenerationServiceStub(channel)
        answer = ids(await stub.Generate(generate(spec())))

        async def caller(num_requests: int) -> None:
            for _ in range(num_requests):
                outcomes[await _one(stub, random, answer)] += 1

        # What is made once and kept (threads, connections, pools) is there after these.
        await asyncio.gather(*(caller(6) for _ in range(NUM_CALLERS)))
        before = await _at_rest(server)
        outcomes.clear()
        await asyncio.gather(*(caller(size // NUM_CALLERS) for _ in range(NUM_CALLERS)))
        after = await _at_rest(server)
        assert ids(await stub.Generate(generate(spec()))) == answer
    print(f"{dict(outcomes)}\nbefore {before}\nafter  {after}")
    assert outcomes["wrong"] == 0
    assert outcomes["left"] > 0.2 * size
    assert outcomes["answered"] > 0.4 * size
    assert after.tasks == before.tasks
    assert after.descriptors == before.descriptors
    assert all(now <= was + 1 for was, now in zip(before.threads, after.threads, strict=True))
    for was, now in zip(before.memory_mib, after.memory_mib, strict=True):
        assert now - was < grown_mib


async def _at_rest(server: RunningServer) -> Held:
    await asyncio.to_thread(server.wait_idle)
    async with asyncio.timeout(30):
        while True:
            now = await asyncio.to_thread(server.statistics)
            if now.running_rows == now.waiting_rows == 0:
                break
            await asyncio.sleep(0.01)
    return await asyncio.to_thread(held, server)


async def _one(stub: v1.GenerationServiceStub, random: Random, answer: list[list[int]]) -> str:
    """One request of a random kind, left early in one of three cases."""
    leaves = random.random() < 1 / 3
    if random.random() < 0.5:
        call = stub.Generate(generate(spec()))
        if leaves:
            await asyncio.sleep(random.random() * 0.02)
            return "left" if call.cancel() else "answered"
        return "answered" if ids(await call) == answer else "wrong"
    events = stub.StreamGenerate(stream(spec(), v1.GRANULARITY_STEPS))
    num_events = random.randrange(8) if leaves else None
    seen: list[int] = []
    try:
        async for event in events:
            if num_events is not None and (num_events := num_events - 1) < 0:
                events.cancel()
                return "left"
            seen.extend(event.committed.tokens.ids)
    except grpc.RpcError as error:
        return f"failed {error.code().name}"
    return "answered" if [seen] == answer else "wrong"
