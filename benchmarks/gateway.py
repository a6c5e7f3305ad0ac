"""What a gateway adds to a request: ours, smg and LiteLLM in front of one server that is no work.

    python -m benchmarks.gateway [--rounds 30] [--peers DIR | --peers none] [--out DIR]

The upstream is benchmarks.standin: one process, answers of 48 pieces that are encoded beforehand,
in vdiff.v1 for ours, in vLLM's contract for smg, in OpenAI's HTTP for LiteLLM. All gateways run
at once with their own defaults (ours without its rate limit, which no peer has switched on), each
logging to a file, and are asked in turn, so that all suffer the same disturbance.

*Latency.* One chat request at a time over one kept connection, until the last byte of the answer;
`added` is that less the same upstream's own answer to a direct call: grpc.aio on uvloop for the
two contracts (what our gateway itself uses), the same raw socket for HTTP. A round has `requests`
of each; added p50 is the median over rounds of the difference of the round's medians, from the
same round, with its quartiles; added p99 the difference of the 99th percentiles of all. An
upstream that sends 48 steps at once is the worst case for a stream: a model takes milliseconds a
step, during which whatever a gateway does to the step before costs nobody time.

The work is not the same. smg tokenizes, applies the chat template and turns token ids into text;
ours leaves that to the server behind it; LiteLLM passes on. smg's contract streams where ours has
a unary call. Compare `added` with that in mind, or the absolute times, which have no baseline.

*Requests per second of a core.* Processor time of the gateway's process tree per request, from
`load` requests over 8 connections at once; its inverse. *Start-up* from exec to the first 200 of
its liveness route, and to the first chat request that is answered, each the median of several starts.
*Memory* is resident, after the first answer and after everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from benchmarks import gateway_page, gateways, report
from benchmarks.gateways import Kind, PeerError, Running
from benchmarks.standin import MODEL, NUM_STEPS, PROMPT_TOKENS, pieces, vllm_stubs
from benchmarks.wire import Connection, request
from vdiff_grpc import v1

MODES = ("JSON", "SSE")
_CONNECTIONS = 8
_LOAD_PARTS = 5
_WARM = 2  # requests of a round that are not counted: whoever was asked before fills the caches
_PROMPT = "Tell me a story about a girl and her dog."
_PATH = "/v1/chat/completions"


def _chat(stream: bool) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": NUM_STEPS,
        "temperature": 0,
    }
    return request(_PATH, json.dumps(body | ({"stream": True} if stream else {})).encode())


_REQUESTS = {"JSON": _chat(stream=False), "SSE": _chat(stream=True)}


def main() -> None:
    arguments = _arguments()
    kinds, skipped = _kinds(arguments.peers)
    figures = measure(
        kinds,
        gateways.vllm_stubs_folder(Path(arguments.peers)) if len(kinds) > 1 else "",
        rounds=arguments.rounds,
        requests=arguments.requests,
        load=arguments.load,
        starts=arguments.starts,
    )
    print("\n" + report.table(figures["latency"]), report.table(figures["processes"]), sep="\n\n")
    for reason in skipped:
        print(f"\nleft out: {reason}")
    if arguments.out:
        out = Path(arguments.out)
        page = out / "gateway-results.md"
        kept = page.read_text(encoding="utf-8") if page.exists() else ""
        page.write_text(gateway_page.page(figures, skipped, kept), encoding="utf-8")
        rows = figures.pop("latency")
        report.write(str(out / "gateway.json"), rows, **figures, skipped=skipped)


def measure(
    kinds: Sequence[Kind], stubs: str, *, rounds: int, requests: int, load: int, starts: int
) -> dict[str, Any]:
    """Starts everything, measures, ends everything. stubs: of vLLM's contract; empty is none."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        at = stack.enter_context(_standin(stubs))
        times: dict[str, list[tuple[float, float]]] = {kind.name: [] for kind in kinds}
        for done in range(starts):
            for kind in kinds:
                begun = time.monotonic()
                with gateways.started(kind, *at, scratch) as gateway:
                    times[kind.name].append(_time_start(gateway, begun))
            _progress(f"start {done + 1} of {starts}")

        running = [stack.enter_context(gateways.started(kind, *at, scratch)) for kind in kinds]
        for one in running:
            one.wait_for(_REQUESTS["JSON"])
            _check(one)
        idle = {one.kind.name: one.memory_mib() for one in running}

        direct = stack.enter_context(closing(_Direct(at[0], stubs)))
        askers: dict[str, Asker] = {
            kind.direct: partial(direct.times, kind.direct) for kind in kinds
        }
        host, _, port = at[1].partition(":")
        addresses = {"http": (host, int(port)), **{one.kind.name: one.address for one in running}}
        for name, address in addresses.items():
            askers[name] = partial(_over_http, stack.enter_context(Connection(address)))
        samples = _latencies(askers, rounds, requests)
        cpu_ms = _processor_times(running, load)
        processes = [
            {
                "gateway": one.kind.name,
                "version": one.kind.version,
                "start s": statistics.median(live for live, _ in times[one.kind.name]),
                "first answer s": statistics.median(last for _, last in times[one.kind.name]),
                "idle MiB": idle[one.kind.name],
                "loaded MiB": one.memory_mib(),
                **{f"{mode} CPU ms": cpu_ms[one.kind.name, mode] for mode in MODES},
                **{f"{mode}/s a core": 1e3 / cpu_ms[one.kind.name, mode] for mode in MODES},
            }
            for one in running
        ]
    return {
        "latency": [_latency_row(kind, mode, samples) for mode in MODES for kind in kinds],
        "processes": processes,
        # What asking costs by itself: the raw socket and the stand-in's HTTP.
        "floor ms": {mode: statistics.median(_joined(samples["http", mode])) for mode in MODES},
        "rounds": rounds,
        "requests": requests,
        "load": load,
        "starts": starts,
        "load average": os.getloadavg(),
    }


# --- latency ----------------------------------------------------------------------

# Milliseconds by who was asked and how: of each round, of each request in it.
Samples = dict[tuple[str, str], list[list[float]]]
Asker = Callable[[str, int], list[float]]


def _latencies(askers: dict[str, Asker], rounds: int, requests: int) -> Samples:
    samples: Samples = {(name, mode): [] for name in askers for mode in MODES}
    names = list(askers)
    for done in range(rounds):
        for name in names:
            for mode in MODES:
                samples[name, mode].append(askers[name](mode, requests + _WARM)[_WARM:])
        names.append(names.pop(0))  # nobody always comes after the same one
        _progress(f"round {done + 1} of {rounds}")
    return samples


def _over_http(connection: Connection, mode: str, number: int) -> list[float]:
    question = _REQUESTS[mode]
    times = []
    for _ in range(number):
        begin = time.perf_counter()
        connection.ask(question)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


class _Direct:
    """The stand-in asked without a gateway, over gRPC, on a loop of its own."""

    def __init__(self, address: str, stubs: str) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._runner.run(self._connect(address, stubs))

    async def _connect(self, address: str, stubs: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        ours = v1.GenerationServiceStub(self._channel)
        spec = v1.GenerationSpec(
            model=MODEL,
            chat=v1.ChatInput(messages=[v1.ChatMessage(role=v1.ROLE_USER, content=_PROMPT)]),
            sampling=v1.SamplingParams(max_new_tokens=NUM_STEPS, temperature=0),
        )
        self._calls: dict[tuple[str, str], Callable[[], Any]] = {
            ("vdiff.v1", "JSON"): lambda: ours.Generate(v1.GenerateRequest(spec=spec)),
            ("vdiff.v1", "SSE"): lambda: ours.StreamGenerate(v1.StreamGenerateRequest(spec=spec)),
        }
        if stubs:
            pb2, pb2_grpc = vllm_stubs(stubs)
            theirs = pb2_grpc.VllmEngineStub(self._channel)
            prompt = pb2.TokenizedInput(original_text=_PROMPT, input_ids=range(PROMPT_TOKENS))
            for mode in MODES:
                question = pb2.GenerateRequest(
                    request_id="direct",
                    tokenized=prompt,
                    sampling_params=pb2.SamplingParams(temperature=0, max_tokens=NUM_STEPS),
                    stream=mode == "SSE",
                )
                self._calls["vllm", mode] = partial(theirs.Generate, question)

    def close(self) -> None:
        self._runner.run(self._channel.close())
        self._runner.close()

    def times(self, protocol: str, mode: str, number: int) -> list[float]:
        return self._runner.run(self._times(self._calls[protocol, mode], number))

    async def _times(self, call: Callable[[], Any], number: int) -> list[float]:
        times = []
        for _ in range(number):
            begin = time.perf_counter()
            answer = call()
            if isinstance(answer, grpc.aio.UnaryUnaryCall):
                await answer
            else:
                async for _ in answer:
                    pass
            times.append((time.perf_counter() - begin) * 1e3)
        return times


def _latency_row(kind: Kind, mode: str, samples: Samples) -> report.Row:
    own, base = samples[kind.name, mode], samples[kind.direct, mode]
    added = [
        statistics.median(one) - statistics.median(other)
        for one, other in zip(own, base, strict=True)
    ]
    quartiles = statistics.quantiles(added, n=4) if len(added) > 1 else [added[0]] * 3
    return {
        "mode": mode,
        "gateway": kind.name,
        "direct p50 ms": statistics.median(_joined(base)),
        "p50 ms": statistics.median(_joined(own)),
        "added p50 ms": statistics.median(added),
        "added quartiles ms": f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
        "added p99 ms": _percentile(_joined(own), 99) - _percentile(_joined(base), 99),
        "p99 ms": _percentile(_joined(own), 99),
    }


def _joined(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [one for several in rounds for one in several]


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


# --- processor time and memory ----------------------------------------------------


def _processor_ms(gateway: Running, mode: str, load: int) -> float:
    """Of one request, with several under way."""

    def ask(number: int) -> None:
        with Connection(gateway.address) as connection:
            for _ in range(number):
                connection.ask(_REQUESTS[mode])

    share = max(load // _CONNECTIONS, 1)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        before = gateway.cpu_s()
        list(pool.map(ask, [share] * _CONNECTIONS))
        return (gateway.cpu_s() - before) * 1e3 / (share * _CONNECTIONS)


def _processor_times(running: Sequence[Running], load: int) -> dict[tuple[str, str], float]:
    """In turn, a fifth of the load each time; the medians."""
    parts: dict[tuple[str, str], list[float]] = {}
    for _ in range(_LOAD_PARTS):
        for one in running:
            for mode in MODES:
                cost_ms = _processor_ms(one, mode, load // _LOAD_PARTS)
                parts.setdefault((one.kind.name, mode), []).append(cost_ms)
    return {key: statistics.median(values) for key, values in parts.items()}


def _time_start(gateway: Running, begun: float) -> tuple[float, float]:
    """Seconds to the liveness route's 200, and to the first answer."""
    gateway.wait_for(request(gateway.kind.live))
    live_s = time.monotonic() - begun
    gateway.wait_for(_REQUESTS["JSON"])
    return live_s, time.monotonic() - begun


def _check(gateway: Running) -> None:
    """Whether it says what the stand-in said. Raises PeerError."""
    text = "".join(pieces()[1])
    with Connection(gateway.address) as connection:
        whole = json.loads(connection.ask(_REQUESTS["JSON"]).body)
        events = connection.ask(_REQUESTS["SSE"]).body
    joined = b"".join(_unchunked(events)).decode()
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in joined.split("\n")
        if line.startswith("data: {")
    ]
    deltas = [choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]]
    if whole["choices"][0]["message"]["content"] != text or "".join(deltas) != text:
        raise PeerError(f"{gateway.kind.name} does not say what the server said")
    if sum(map(bool, deltas)) < NUM_STEPS or "data: [DONE]" not in joined:
        raise PeerError(f"{gateway.kind.name} does not stream {NUM_STEPS} pieces to the end")


def _unchunked(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


# --- the rest ---------------------------------------------------------------------


@contextmanager
def _standin(stubs: str) -> Iterator[tuple[str, str]]:
    """Its gRPC and its HTTP address."""
    command = [sys.executable, "-m", "benchmarks.standin", "--vllm-stubs", stubs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            grpc_address, http_address = process.stdout.readline().split()
            yield grpc_address, http_address
        finally:
            process.terminate()


def _kinds(peers: str) -> tuple[list[Kind], list[str]]:
    """What is measured, and what is not with the reason."""
    kinds, skipped = [gateways.ours()], []
    if peers != "none":
        for peer in (gateways.smg, gateways.litellm):
            try:
                kinds.append(peer(Path(peers)))
            except PeerError as error:
                skipped.append(str(error))
    return kinds, skipped


def _progress(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--load", type=int, default=2000, help="requests for the processor time")
    parser.add_argument("--starts", type=int, default=5, help="times that each is started")
    parser.add_argument(
        "--peers", default=".cache/peers", help="folder they are installed in; none"
    )
    parser.add_argument("--out", default="", help="folder for gateway.json and gateway-results.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
