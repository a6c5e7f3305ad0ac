"""What exported telemetry costs: every call traced and all metrics sent, beside neither.

    python -m benchmarks.telemetry [--pairs 4] [--rounds 4] [--seconds 2] [--json docs/telemetry.json]

Two servers and two gateways of the embedded model, one of each with a local OTLP receiver, are asked in
turn by the same callers. Two processes that do the same differ by some percent for as long as they live
(measured: 6), so that several pairs are started. Ratios are of calls a second, and of the CPU time that
the process itself spent on a call, which other work on the machine disturbs less: the median over all
rounds, and the median of each pair. Last, the metrics that are always on: the time of their code alone, in
this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc import aio

from vdiff_grpc import v1
from vdiff_grpc.server.interceptors import Call
from vdiff_grpc.server.observer import Observer

_CALLERS = 8
_TOKENS = 8
_TICKS = os.sysconf("SC_CLK_TCK")
_OTLP = "opentelemetry.proto.collector"

Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Round:
    per_s: float
    cpu_us: float  # of the process under test, a call


Pair = tuple[list[Round], list[Round]]  # without and with


@dataclass(frozen=True, slots=True)
class Figures:
    """ratio: with telemetry by without; below 1 is slower, above 1 more CPU. by_pair: sorted."""

    what: str
    off_per_s: float
    on_per_s: float
    throughput_ratio: float
    throughput_by_pair: list[float]
    off_cpu_us: float
    on_cpu_us: float
    cpu_ratio: float
    cpu_by_pair: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--role", choices=("all", "receiver"), default="all")
    arguments = parser.parse_args()
    if arguments.role == "receiver":
        _receive()
        return
    sides: dict[str, list[Pair]] = {}
    for number in range(arguments.pairs):
        print(f"pair {number + 1} of {arguments.pairs}", file=sys.stderr)
        for what, pair in asyncio.run(_measure(arguments.rounds, arguments.seconds)).items():
            sides.setdefault(what, []).append(pair)
    report = {
        "pairs": arguments.pairs,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "callers": _CALLERS,
        "tokens": _TOKENS,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "opentelemetry-sdk": version("opentelemetry-sdk"),
        "cases": [asdict(_figures(what, pairs)) for what, pairs in sides.items()],
        "metrics_alone_us": _metrics_alone_us(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


async def _measure(rounds: int, seconds: float) -> dict[str, Pair]:
    found = {}
    with ExitStack() as stack:
        receiver, _ = stack.enter_context(_process("benchmarks.telemetry", "--role", "receiver"))
        exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver}"}
        flags = ("serve", "--port", "0", "--metrics-port", "0", "--threads", "1")
        servers = [
            stack.enter_context(_process("vdiff_grpc", *flags, **variables))
            for variables in ({}, exported)
        ]
        quiet = servers[0][0]
        front = ("--port", "0", "--requests-per-minute", "0", "--server", quiet)
        gateways = [
            stack.enter_context(_process("gateway.app", *front, **variables))
            for variables in ({}, exported)
        ]
        channels = [aio.insecure_channel(address) for address, _ in servers]
        for channel in channels:
            await _ready(channel)
        asks = {
            "server, GetModelInfo": [_model_info(channel) for channel in channels],
            f"server, Generate of {_TOKENS} tokens": [_generate(channel) for channel in channels],
        }
        for what, pair in asks.items():
            found[what] = await _compare(pair, [pid for _, pid in servers], rounds, seconds)
        async with httpx.AsyncClient(timeout=60) as client:
            what = f"gateway, completion of {_TOKENS} tokens"
            pair = [_complete(client, url) for url, _ in gateways]
            found[what] = await _compare(pair, [pid for _, pid in gateways], rounds, seconds)
        for channel in channels:
            await channel.close()
    return found


async def _compare(asks: list[Ask], pids: list[int], rounds: int, seconds: float) -> Pair:
    """In turn, each first as often as the other."""
    sides: Pair = ([], [])
    for ask, pid in zip(asks, pids, strict=True):
        await _load(ask, pid, seconds / 2)  # to warm up
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            sides[side].append(await _load(asks[side], pids[side], seconds))
    return sides


def _figures(what: str, pairs: list[Pair]) -> Figures:
    def medians(of: str) -> tuple[float, float, float, list[float]]:
        ratios = [
            [getattr(on, of) / getattr(off, of) for off, on in zip(*pair, strict=True)]
            for pair in pairs
        ]
        off, on = (
            statistics.median(getattr(one, of) for pair in pairs for one in pair[side])
            for side in (0, 1)
        )
        by_pair = sorted(round(statistics.median(some), 3) for some in ratios)
        ratio = statistics.median(one for some in ratios for one in some)
        return round(off, 1), round(on, 1), round(ratio, 3), by_pair

    return Figures(what, *medians("per_s"), *medians("cpu_us"))


async def _load(ask: Ask, pid: int, seconds: float) -> Round:
    count = 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await ask()
            count += 1

    cpu, begin = _cpu_s(pid), time.perf_counter()
    end = begin + seconds
    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    took = time.perf_counter() - begin
    return Round(count / took, (_cpu_s(pid) - cpu) / count * 1e6)


def _model_info(channel: aio.Channel) -> Ask:
    call = v1.ModelServiceStub(channel).GetModelInfo
    request = v1.GetModelInfoRequest()

    async def ask() -> object:
        return await call(request)

    return ask


def _generate(channel: aio.Channel) -> Ask:
    call = v1.GenerationServiceStub(channel).Generate
    sampling = v1.SamplingParams(max_new_tokens=_TOKENS, ignore_eos=True, seed=1)
    spec = v1.GenerationSpec(text="Once upon a time", sampling=sampling)
    request = v1.GenerateRequest(spec=spec)

    async def ask() -> object:
        return await call(request)

    return ask


def _complete(client: httpx.AsyncClient, url: str) -> Ask:
    fields = {"prompt": "Once upon a time", "max_tokens": _TOKENS, "ignore_eos": True, "seed": 1}

    async def ask() -> object:
        reply = await client.post(f"{url}/v1/completions", json=fields)
        reply.raise_for_status()
        return reply

    return ask


async def _ready(channel: aio.Channel) -> None:
    while True:
        reply = await v1.ModelServiceStub(channel).GetServerInfo(v1.GetServerInfoRequest())
        if reply.state == v1.ENGINE_STATE_READY:
            return
        await asyncio.sleep(0.1)


def _metrics_alone_us(count: int = 20_000) -> float:
    """Of what a call without spans costs: the Observer's begin and end."""
    observer = Observer(("m",), "1")

    def call() -> None:
        observer.begun("ModelService/GetModelInfo", {})
        observer.ended(Call("ModelService/GetModelInfo", "id"), grpc.StatusCode.OK, 0.001)

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - begin) / count * 1e6)
    return round(min(times), 2)


def _cpu_s(pid: int) -> float:
    """User and system time of the process without its children: not the engine's."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


@contextmanager
def _process(module: str, *flags: str, **variables: str) -> Iterator[tuple[str, int]]:
    """Where it listens, and its id."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    with subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=environ | variables,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if match := re.search(r"listening on (\S+?)(?:,|\s)", line):
                    break
            else:
                raise RuntimeError(f"{module} did not start")
            # Whoever writes more than a pipe holds would stop.
            ThreadPoolExecutor(1).submit(process.stderr.read)
            yield match[1], process.pid
        finally:
            process.kill()


def _receive() -> None:
    """Takes what it is sent and forgets it."""

    def take(data: Any, context: Any) -> bytes:
        return b""

    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Export": grpc.unary_unary_rpc_method_handler(take)}
    for service in ("trace.v1.TraceService", "metrics.v1.MetricsService"):
        name = f"{_OTLP}.{service}"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}\n", file=sys.stderr, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
