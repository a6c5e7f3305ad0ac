"""`vdiff-grpc serve --tensor-parallel-size 2`: it answers, comes back, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chaos.processes import ServerProcess
from tests.server.calls import generate, ids, spec
from vdiff_grpc import v1

GENERATION = health_pb2.HealthCheckRequest(service="vdiff.v1.GenerationService")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 30.0


def test_a_server_over_two_processes_answers_restarts_when_one_dies_and_leaves_none(
    tmp_path: Path,
) -> None:
    server = ServerProcess(tmp_path, "--tensor-parallel-size", "2")
    try:
        server.wait_ready()
        assert server.process is not None
        with grpc.insecure_channel(server.address) as channel:
            generation = v1.GenerationServiceStub(channel)
            first = generation.Generate(generate(spec()))
            assert len(ids(first)[0]) == 16
            former = engine_and_rank(server.process.pid)
            states = health_pb2_grpc.HealthStub(channel).Watch(GENERATION, timeout=60)
            assert next(states).status == SERVING
            os.kill(former[1], signal.SIGKILL)
            assert next(states).status == NOT_SERVING
            assert next(states).status == SERVING
            states.cancel()
            assert ids(generation.Generate(generate(spec()))) == ids(first)
        present = engine_and_rank(server.process.pid)
        assert not set(former) & set(present)
        assert server.leave() == 0
        until(lambda: not any(is_alive(pid) for pid in (*former, *present)))
        assert "rank 1 of the tensor-parallel model has ended: killed by SIGKILL" in (
            server.log.read_text()
        )
    finally:
        server.kill()


@pytest.mark.long
def test_a_server_that_is_killed_takes_all_its_processes_along(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--tensor-parallel-size", "2")
    try:
        server.wait_ready()
        assert server.process is not None
        pids = engine_and_rank(server.process.pid)
    finally:
        server.kill()
    until(lambda: not any(is_alive(pid) for pid in pids))


def engine_and_rank(server: int) -> tuple[int, int]:
    """The engine is the server's child that has one itself."""
    for engine in children(server):
        for rank in children(engine):
            return engine, rank
    pytest.fail("there is no second process")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
