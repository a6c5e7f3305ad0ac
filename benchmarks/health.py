"""What a flood does to health checks, to the requests that are taken in, and to memory.

    python -m benchmarks.health [--seconds 30] [--factor 20] [--json FILE]

Three processes: a server, an empty grpc.aio server with nothing but health, and callers who ask
for `factor` times what the server takes in and come back at once when refused. A fourth, this
one, probes both servers in turn, so that both suffer the same load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from vdiff_grpc import v1
from vdiff_grpc.client import build_spec

MAX_RUNNING_ROWS = 4
MAX_WAITING_ROWS = 12
_NUM_QUESTIONS = 8
_LONGEST_WAIT_S = 0.05
_PROBE_INTERVAL_S = 0.02
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Figures:
    """Latencies in ms, memory in MiB. `wrong`: answers that were not the right ones."""

    seconds: float
    callers: int
    answered: int
    refused: int
    refused_without_retry_info: int
    failed: int
    wrong: int
    probes: int
    health_p50_ms: float
    health_p99_ms: float
    health_max_ms: float
    empty_p50_ms: float
    empty_p99_ms: float
    empty_max_ms: float
    memory_first_mib: float
    memory_last_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--factor", type=int, default=20, help="callers by places in the server")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--role", choices=("all", "empty", "flood"), default="all")
    parser.add_argument("--address", default="")
    arguments = parser.parse_args()
    if arguments.role == "empty":
        asyncio.run(_serve_health_alone())
    elif arguments.role == "flood":
        num_callers = arguments.factor * (MAX_RUNNING_ROWS + MAX_WAITING_ROWS)
        asyncio.run(_flood(arguments.address, num_callers, arguments.seconds))
    else:
        figures = asdict(measure(arguments.seconds, arguments.factor))
        for name, value in figures.items():
            print(f"{name:27} {value:10.6g}")
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(seconds: float, factor: int) -> Figures:
    """Starts everything, floods for so long, and ends everything."""
    with _server() as (server, address), _python_child("--role", "empty") as (empty, empty_address):
        del empty
        flood = ["--role", "flood", "--address", address, "--seconds", str(seconds)]
        with _python_child(*flood, "--factor", str(factor)) as (callers, _):
            ours: list[float] = []
            others: list[float] = []
            memory: list[float] = []
            with (
                grpc.insecure_channel(address) as our_channel,
                grpc.insecure_channel(empty_address) as empty_channel,
            ):
                our_stub: Any = health_pb2_grpc.HealthStub(our_channel)
                empty_stub: Any = health_pb2_grpc.HealthStub(empty_channel)
                _probe(our_stub), _probe(empty_stub)  # the connections
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    ours.append(_probe(our_stub))
                    others.append(_probe(empty_stub))
                    memory.append(_memory_mib(server.pid))
                    time.sleep(_PROBE_INTERVAL_S)
            told, _ = callers.communicate(timeout=120)
    counts: Counter[str] = Counter(json.loads(told))
    return Figures(
        seconds=seconds,
        callers=factor * (MAX_RUNNING_ROWS + MAX_WAITING_ROWS),
        answered=counts["answered"],
        refused=counts["refused"],
        refused_without_retry_info=counts["refused without RetryInfo"],
        failed=counts["failed"],
        wrong=counts["wrong"],
        probes=len(ours),
        health_p50_ms=_percentile(ours, 50),
        health_p99_ms=_percentile(ours, 99),
        health_max_ms=max(ours),
        empty_p50_ms=_percentile(others, 50),
        empty_p99_ms=_percentile(others, 99),
        empty_max_ms=max(others),
        # the first quarter is the flood's arrival: buffers and threads that then stay
        memory_first_mib=memory[len(memory) // 4],
        memory_last_mib=memory[-1],
    )


def _probe(stub: Any) -> float:
    """One health check of liveness; its time in ms."""
    since = time.perf_counter()
    stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    return (time.perf_counter() - since) * 1e3


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _memory_mib(pid: int) -> float:
    """Resident memory of a process and its children, the engine among them."""
    pages = 0
    for one in (pid, *_children(pid)):
        try:
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:  # it has ended meanwhile
            continue
    return pages * _PAGE_BYTES / 2**20


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


# --- the processes --------------------------------------------------------------


@contextmanager
def _server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The embedded model with few places, in a process of its own; once it serves."""
    options = {
        "--model": "demo",
        "--aux-model": "none",
        "--port": "0",
        "--threads": "1",
        "--max-running-rows": str(MAX_RUNNING_ROWS),
        "--max-waiting-rows": str(MAX_WAITING_ROWS),
        "--log-level": "info",
    }
    words = [word for pair in options.items() for word in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "vdiff_grpc", "serve", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with _ended(process):
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"serving \S+ on (\S+)", line):
                break
        else:
            raise RuntimeError("the server has ended before it served")
        # Its log would fill the pipe and then stop it.
        reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        with _ended(reader):
            yield process, found[1]


@contextmanager
def _python_child(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """This module in another role; with the first line it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.health", *arguments], stdout=subprocess.PIPE, text=True
    )
    with _ended(process):
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


@contextmanager
def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


async def _serve_health_alone() -> None:
    server = aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


# --- the callers ----------------------------------------------------------------


async def _flood(address: str, num_callers: int, seconds: float) -> None:
    questions = [
        build_spec(text="Once upon a time", max_new_tokens=16, seed=seed, temperature=0.8)
        for seed in range(_NUM_QUESTIONS)
    ]
    counts: Counter[str] = Counter()
    async with aio.insecure_channel(address) as channel:
        stub = v1.GenerationServiceStub(channel)
        answers = [(await stub.Generate(v1.GenerateRequest(spec=q))).outputs for q in questions]
        print("flooding", flush=True)
        end = time.monotonic() + seconds

        async def caller(number: int) -> None:
            while time.monotonic() < end:
                number = (number + 1) % _NUM_QUESTIONS
                try:
                    reply = await stub.Generate(v1.GenerateRequest(spec=questions[number]))
                    right = reply.outputs[0].tokens.ids == answers[number][0].tokens.ids
                    counts["answered" if right else "wrong"] += 1
                except aio.AioRpcError as error:
                    await asyncio.sleep(min(_LONGEST_WAIT_S, _refused(error, counts)))

        await asyncio.gather(*(caller(number) for number in range(num_callers)))
    print(json.dumps(counts), flush=True)


def _refused(error: aio.AioRpcError, counts: Counter[str]) -> float:
    """Counts it; gives when to come back, in seconds."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        counts["failed"] += 1
        print(error, file=sys.stderr)
        return _LONGEST_WAIT_S
    counts["refused"] += 1
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # typed for the blocking API
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            delay: Duration = retry.retry_delay
            return delay.ToNanoseconds() / 1e9
    counts["refused without RetryInfo"] += 1
    return _LONGEST_WAIT_S


if __name__ == "__main__":
    main()
