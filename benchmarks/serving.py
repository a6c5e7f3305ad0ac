"""Ours beside dlmserve, LLaDA's generate.py and dInfer: tokens per second, and latency under load.

    python -m benchmarks.serving [--out DIR] [--peers DIR | --peers none]
        [--llada PATH] [--fast-dllm PATH] [--dinfer PATH] [--width 256] [--layers 8]

All load one random checkpoint in LLaDA-8B's shape with its vocabulary of 126,464 and a small body,
in float32 on the CPU, on one thread each, and do the same: the fixed schedule at temperature 0,
no early end, no cache. They are asked in turn in one run, so that all suffer the same disturbance.

*In process.* One request at a time: our Engine as a library, generate.py, and, with the rule that
dInfer's loop has, `confidence_threshold` 0.9 on both sides. Random weights are never so sure:
that is one token per forward pass. dInfer's FixedParallelDecoder has names that are not defined
(`block_init`) and cannot run.

*Over HTTP and gRPC.* So many clients, each with its next request when its last is answered. Equal
lengths of answers, prompts of 16 to 48 tokens: dlmserve shares a step among requests that have
taken equally many steps, at most 8, and pads them. `forwards` are canvases, `steps` calls of the
model; `processor` is the time of the server's processes, which other work on the machine disturbs
least; `of bare` is over what the ideal below would give.

*Latency.* Requests of 32, 64 and 96 new tokens arrive by a Poisson process with a fixed seed, at
a share of the server's own capacity: its tokens per second with 8 clients over the mean length. Ideal is
the schedule in which everyone joins at the next step, all share every step, and nothing takes
time but a bare packed forward pass: a table of those is measured in this process before and after
each load, at sizes between which it is interpolated. They are filled up to whole rows as the
engine fills them (that keeps answers bit-equal); `unfilled` is the ideal without it. dlmserve is
held to ours, and to its own: padded canvases with the head on every position, its own step times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import gateways, report, serving_page, serving_peers
from benchmarks.gateways import Kind, PeerError, Running
from benchmarks.ideal import Arrival, Steps, StepTimes, fixed_schedule, latencies
from benchmarks.serving_clients import Counts, Grpc, Http, Server, Work, closed_loop, open_loop
from benchmarks.serving_peers import MASK_ID
from benchmarks.wire import request
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.exact import whole_rows
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, Strategy
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams, TokensPrompt

_BLOCK = 32
_CANVAS = 96  # of the table's bare forward passes
_BODY_ROWS = (1, 4, 12, 32)
_HEADS = (8, 32, 96, 256)
_NEW = (32, 64, 96)
_TOKENS_PER_STEP = 8
_MAX_ROWS = 32  # the engine's default
_DLMSERVE_ROWS = 8  # its default
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    clients: tuple[int, ...] = (1, 4, 8, 32)
    rounds: int = 2
    loads: tuple[float, ...] = (0.5, 0.7, 0.9)
    peer_loads: tuple[float, ...] = (0.7,)
    arrivals: int = 40
    peer_arrivals: int = 16


def main() -> None:
    arguments = _arguments()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers, skipped = _find(arguments)
        checkpoint = scratch / "llada-shaped"
        code = peers.modelling or scratch
        serving_peers.write_checkpoint(
            checkpoint, code, width=arguments.width, layers=arguments.layers
        )
        figures = measure(checkpoint, peers, scratch, Size())
    figures["skipped"] = skipped + figures["skipped"]
    figures["shape"] = {
        "width": arguments.width,
        "layers": arguments.layers,
        "vocabulary": serving_peers.VOCAB_SIZE,
    }
    for name in ("in process", "throughput", "latency"):
        if figures[name]:
            print(f"\n{name}\n{report.table(figures[name])}")
    print("\n" + "\n".join(serving_page.marks(figures)))
    if arguments.out:
        out = Path(arguments.out)
        page = out / "serving-results.md"
        kept = page.read_text(encoding="utf-8") if page.exists() else ""
        page.write_text(serving_page.page(figures, kept), encoding="utf-8")
        rows = figures.pop("throughput")
        report.write(str(out / "serving.json"), rows, **figures)


@dataclass(frozen=True, slots=True)
class Peers:
    """Where they are; None is not there. packages: dlmserve and its transformers."""

    packages: Path | None = None
    modelling: Path | None = None
    llada: Path | None = None
    dinfer: Path | None = None


def measure(checkpoint: Path, peers: Peers, scratch: Path, size: Size) -> dict[str, Any]:
    """Starts everything, measures, ends everything."""
    began = time.monotonic()
    skipped: list[str] = []
    with ExitStack() as stack:
        engine = Engine(EngineConfig(str(checkpoint), device="cpu", dtype="float32", threads=1))
        engine.warm_up()
        published = None
        if peers.packages and peers.modelling and peers.llada:
            _progress("LLaDA's generate.py starts")
            published = stack.enter_context(_Published.started(checkpoint, peers, scratch))
        figures: dict[str, Any] = {"in process": _in_process(engine, published, size.rounds)}

        _progress("servers start")
        servers, running = _serve(stack, checkpoint, peers, scratch)
        answers = {server.name: server.ask(_works(1, seed=1)[0]) for server in servers}
        if len(set(answers.values())) > 1:
            skipped.append(f"equal answers: {answers}")
        figures["throughput"] = _throughput(engine, servers, running, size)
        capacities = {
            row["server"]: row["tokens/s"]
            for row in figures["throughput"]
            if row["clients"] == min(8, max(size.clients))
        }
        figures["latency"] = _latency(engine, published, servers, capacities, size)
    return figures | {
        "skipped": skipped,
        "size": {name: getattr(size, name) for name in Size.__slots__},
        "answers equal": len(set(answers.values())) == 1,
        "versions": _versions(peers, published),
        "date": time.strftime("%Y-%m-%d"),
        "minutes": (time.monotonic() - began) / 60,
        "load average": os.getloadavg(),
    }


# --- in process --------------------------------------------------------------------


class _Published:
    """benchmarks/llada_peers.py, asked over its pipe."""

    def __init__(self, process: subprocess.Popen[str], dinfer: bool) -> None:
        self._process = process
        self.has_dinfer = dinfer
        self.transformers: str = self._read()["transformers"]

    @classmethod
    @contextmanager
    def started(cls, checkpoint: Path, peers: Peers, scratch: Path) -> Iterator[_Published]:
        script = Path(__file__).with_name("llada_peers.py")
        places = [checkpoint, peers.llada, peers.dinfer or ""]
        with (scratch / "llada_peers.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(script), *map(str, places)],
                env=_environ(peers, scratch),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            yield cls(process, bool(peers.dinfer))
        except PeerError as error:
            tail = (scratch / "llada_peers.log").read_text().strip().rpartition("\n")[2]
            raise PeerError(f"{error}: {tail}") from error
        finally:
            process.kill()
            process.wait()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def do(self, do: str, work: Work) -> dict[str, Any]:
        more = {"new": work.new, "block": work.block, "steps": work.steps}
        return self.ask(do, prompt=list(work.prompt), **more)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError("LLaDA's process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _in_process(engine: Engine, published: _Published | None, rounds: int) -> list[report.Row]:
    """Each asked for the same, in turn."""
    fixed, slow = _works(1, seed=2)[0], Work(_prompt(random.Random(3), 32), 32, _BLOCK, 32)
    askers: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        ("fixed", "ours"): lambda: _own(engine, fixed, FixedSchedule()),
    }
    if published:
        askers["fixed", "generate.py"] = lambda: published.do("generate", fixed)
        if published.has_dinfer:
            askers["threshold", "ours"] = lambda: _own(engine, slow, ConfidenceThreshold(0.9))
            askers["threshold", "dInfer"] = lambda: published.do("threshold", slow)
    got: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in askers}
    for done in range(rounds + 1):
        for key, ask in askers.items():
            got[key].append(ask())
        _progress(f"in process, round {done} of {rounds}")
    rows = []
    for (rule, name), answers in got.items():
        first = got[rule, "ours"]
        seconds = statistics.median(answer["s"] for answer in answers[1:])  # the first warms up
        ours = statistics.median(answer["s"] for answer in first[1:])
        rows.append(
            {
                "rule": rule,
                "by": name,
                "tokens": len(answers[0]["tokens"]),
                "forwards": answers[0]["forwards"],
                "ms/forward": seconds * 1e3 / answers[0]["forwards"],
                "tokens/s": len(answers[0]["tokens"]) / seconds,
                "times ours": seconds / ours,
                "same tokens": answers[0]["tokens"] == first[0]["tokens"],
            }
        )
    return rows


def _own(engine: Engine, work: Work, strategy: Strategy) -> dict[str, Any]:
    params = RequestParams(
        max_new_tokens=work.new,
        block_length=work.block,
        steps=work.steps if isinstance(strategy, FixedSchedule) else None,
        temperature=0.0,
        strategy=strategy,
        ignore_eos=True,
        seed=0,
    )
    begin = time.perf_counter()
    output = engine.generate(Request(TokensPrompt(work.prompt), params)).outputs[0]
    seconds = time.perf_counter() - begin
    return {"s": seconds, "tokens": list(output.tokens.ids), "forwards": output.forward_passes}


# --- throughput --------------------------------------------------------------------


def _serve(
    stack: ExitStack, checkpoint: Path, peers: Peers, scratch: Path
) -> tuple[list[Server], dict[str, list[Running]]]:
    """All servers, ready; whose processes each one's are."""
    words = f"-m vdiff_grpc serve --port {{port}} --metrics-port 0 --model {checkpoint}"
    command = (sys.executable, *words.split(), "--dtype", "float32", "--threads", "1")
    name = checkpoint.name
    kind = Kind("vdiff-grpc", version("vdiff-grpc"), command, "", "", _ONE_THREAD)
    server = stack.enter_context(gateways.started(kind, "", "", scratch))
    ours = stack.enter_context(closing(Grpc("ours, gRPC", server.address)))
    ours.wait()
    address = "{}:{}".format(*server.address)
    gateway = stack.enter_context(gateways.started(gateways.ours(), address, "", scratch))
    gateway.wait_for(request(gateway.kind.live))
    servers: list[Server] = [ours, Http("ours, HTTP", gateway.address, name, ours)]
    running = {"ours, gRPC": [server], "ours, HTTP": [server, gateway]}
    if peers.packages and peers.modelling:
        script = Path(__file__).with_name("dlmserve_float32.py")
        kind = Kind(
            "dlmserve",
            serving_peers.DLMSERVE,
            (sys.executable, "-P", str(script), "{port}"),
            "/ready",
            "",
            {
                **_environ(peers, scratch),
                "DLMSERVE_MODEL": str(checkpoint),
                "DLMSERVE_DTYPE": "bf16",
                "DLMSERVE_DEVICE": "cpu",
                "DLMSERVE_LOG_LEVEL": "warning",
            },
        )
        dlmserve = stack.enter_context(gateways.started(kind, "", "", scratch))
        dlmserve.wait_for(request(kind.live))
        servers.append(Http("dlmserve, HTTP", dlmserve.address, str(checkpoint)))
        running["dlmserve, HTTP"] = [dlmserve]
    return servers, running


def _throughput(
    engine: Engine, servers: Sequence[Server], running: dict[str, list[Running]], size: Size
) -> list[report.Row]:
    samples: dict[tuple[int, str], list[tuple[float, int, float, Counts]]] = {}
    ideals: dict[int, float] = {}
    for clients in size.clients:
        tables, works = [bare_times(engine)], list[Work]()
        # With many clients a round is long.
        for done in range(size.rounds if clients <= 8 else 1):
            works = _works(max(clients, 2), seed=clients + 100 * done)
            for server in servers:
                before, cpu_s = server.counts(), _cpu_s(running[server.name])
                seconds, tokens = closed_loop(server, clients, works)
                spent = server.counts().since(before)
                sample = (seconds, tokens, _cpu_s(running[server.name]) - cpu_s, spent)
                samples.setdefault((clients, server.name), []).append(sample)
                _progress(f"{clients} clients, round {done + 1}, {server.name}: {seconds:.0f} s")
        tables.append(bare_times(engine))
        # Who waits for a client waits for a row.
        at_once = [Arrival(0.0, _steps(work)) for work in works]
        ends_s = latencies(at_once, _filled(_middle(tables)), clients)
        ideals[clients] = sum(work.new for work in works) / max(ends_s)
    speeds = {
        key: statistics.median(tokens / seconds for seconds, tokens, *_ in taken)
        for key, taken in samples.items()
    }
    processor_ms = {
        key: statistics.median(cpu_s * 1e3 / tokens for _, tokens, cpu_s, _ in taken)
        for key, taken in samples.items()
    }
    peer = "dlmserve, HTTP"
    is_there = any(name == peer for _, name in samples)

    def faster(clients: int, name: str) -> float:
        return speeds[clients, name] / speeds[clients, peer]

    def leaner(clients: int, name: str) -> float:
        return processor_ms[clients, peer] / processor_ms[clients, name]

    return [
        {
            "clients": clients,
            "server": name,
            "requests": len(taken) * max(clients, 2),
            "tokens": sum(tokens for _, tokens, *_ in taken),
            "forwards": sum(spent.forwards for *_, spent in taken),
            "steps": sum(spent.steps for *_, spent in taken),
            "tokens/s": speeds[clients, name],
            "processor ms/token": processor_ms[clients, name],
            "of bare": speeds[clients, name] / ideals[clients],
            **{
                f"{what}over dlmserve": figure(clients, name) if is_there else "-"
                for what, figure in (("", faster), ("processor, ", leaner))
            },
        }
        for (clients, name), taken in samples.items()
    ]


def _cpu_s(processes: Sequence[Running]) -> float:
    return sum(process.cpu_s() for process in processes)


# --- latency -----------------------------------------------------------------------


def _latency(
    engine: Engine,
    published: _Published | None,
    servers: Sequence[Server],
    capacities: dict[str, float],
    size: Size,
) -> list[report.Row]:
    rows: list[report.Row] = []
    for server in servers:
        if server.name == "ours, HTTP":
            continue  # what the gateway adds is benchmarks/gateway.py's question
        is_peer = server.name.startswith("dlmserve")
        for load in size.peer_loads if is_peer else size.loads:
            count = size.peer_arrivals if is_peer else size.arrivals
            draw = random.Random(load)
            works = [
                Work(_prompt(draw, draw.randint(16, 48)), new, _BLOCK, new // _TOKENS_PER_STEP)
                for new in (draw.choice(_NEW) for _ in range(count))
            ]
            mean = statistics.mean(work.new for work in works)
            rate = load * capacities[server.name] / mean
            at_s = 0.0
            arrivals_s = [at_s := at_s + draw.expovariate(rate) for _ in works]
            tables = [bare_times(engine)]
            theirs = [_padded_times(published)] if is_peer and published else []
            _progress(f"{server.name}, load {load}: {arrivals_s[-1]:.0f} s")
            before = server.counts()
            taken = open_loop(server, works, arrivals_s)
            spent = server.counts().since(before)
            tables.append(bare_times(engine))
            if is_peer and published:
                theirs.append(_padded_times(published))
            arrivals = [
                Arrival(at_s, _steps(work)) for at_s, work in zip(arrivals_s, works, strict=True)
            ]
            own = _middle(theirs or tables)
            times = _middle(tables)
            ideals = {
                "ideal": latencies(arrivals, _filled(times), _MAX_ROWS),
                "unfilled": latencies(arrivals, times, _MAX_ROWS),
            }
            if theirs:
                ideals["its own"] = latencies(arrivals, own, _DLMSERVE_ROWS)
            rows += [
                {
                    "server": server.name,
                    "load": load,
                    "over": name,
                    "requests": count,
                    "rate/s": rate,
                    "rows/step": spent.forwards / spent.steps,
                    **{
                        f"p{percent} {what}": value
                        for percent in (50, 95)
                        for what, value in _compared(taken, ideal, percent).items()
                    },
                }
                for name, ideal in ideals.items()
            ]
    return rows


def _compared(taken: Sequence[float], ideal: Sequence[float], percent: int) -> dict[str, float]:
    own, best = _percentile(taken, percent), _percentile(ideal, percent)
    return {"s": own, "ideal s": best, "ratio": own / best}


def bare_times(engine: Engine) -> StepTimes:
    """Seconds of forward passes of canvases side by side, on tensors that are there."""

    def seconds(rows: int, heads: int) -> float:
        tokens = rows * _CANVAS
        ids = torch.full((tokens,), engine.info.mask_token_id or 0)
        positions = torch.arange(_CANVAS).repeat(rows)
        layout = AttentionLayout.of_lengths([_CANVAS] * rows, [FULL] * rows)
        head = torch.arange(heads) % tokens
        begin = time.perf_counter()
        engine.model.logits(ids, positions, layout, head)
        return time.perf_counter() - begin

    body, head = _BODY_ROWS, _HEADS
    taken = [
        ({n: seconds(n, 32) for n in body}, {n: seconds(1, n) for n in head}) for _ in range(3)
    ]
    bodies = {n: statistics.median(one[n] for one, _ in taken) for n in body}
    heads = {n: statistics.median(one[n] for _, one in taken) for n in head}
    return StepTimes(
        tuple((n * _CANVAS, bodies[n]) for n in body),
        tuple((n, heads[n] - heads[32]) for n in head),
    )


def _padded_times(published: _Published) -> StepTimes:
    """The same of the published modelling code, whose head takes every position."""
    points = []
    for rows in (1, 8):
        asked = {"rows": rows, "length": _CANVAS, "id": MASK_ID}
        seconds = statistics.median(published.ask("bare", **asked)["s"] for _ in range(3))
        points.append((rows * _CANVAS, seconds))
    return StepTimes(tuple(points), ((0, 0.0), (1, 0.0)))


def _middle(tables: Sequence[StepTimes]) -> StepTimes:
    """The mean of tables of the same sizes."""
    first = tables[0]
    return StepTimes(
        tuple(
            (size, statistics.mean(table.body[i][1] for table in tables))
            for i, (size, _) in enumerate(first.body)
        ),
        tuple(
            (size, statistics.mean(table.head[i][1] for table in tables))
            for i, (size, _) in enumerate(first.head)
        ),
    )


def _filled(times: StepTimes) -> Callable[[int, int], float]:
    return lambda tokens, heads: times(whole_rows(tokens), whole_rows(heads))


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


# --- setting up --------------------------------------------------------------------


def _steps(work: Work) -> Steps:
    return fixed_schedule(len(work.prompt), work.new, work.block, work.steps)


def _works(count: int, seed: int) -> list[Work]:
    draw = random.Random(seed)
    return [
        Work(_prompt(draw, draw.randint(16, 48)), 64, _BLOCK, 64 // _TOKENS_PER_STEP)
        for _ in range(count)
    ]


def _prompt(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(100, 1_000) for _ in range(length))


def _find(arguments: argparse.Namespace) -> tuple[Peers, list[str]]:
    """What there is of the peers, and what there is not with the reason."""
    skipped: list[str] = []
    if arguments.peers == "none":
        return Peers(), ["peers: none were asked for"]
    folder = Path(arguments.peers)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path | None] = {}

    def look(name: str, given: str, get: Callable[[], Path]) -> None:
        found[name] = None
        try:
            found[name] = Path(given) if given else get()
        except PeerError as error:
            skipped.append(f"{name}: {error}")

    look("dlmserve", "", lambda: serving_peers.packages(folder))
    for name, given in (
        ("LLaDA", arguments.llada),
        ("Fast-dLLM", arguments.fast_dllm),
        ("dInfer", arguments.dinfer),
    ):
        look(name, given, lambda name=name: serving_peers.repository(folder, name))  # type: ignore[misc]
    code = found["Fast-dLLM"]
    modelling = code / "llada" / "model" if code else None
    return Peers(found["dlmserve"], modelling, found["LLaDA"], found["dInfer"]), skipped


def _environ(peers: Peers, scratch: Path) -> dict[str, str]:
    """Of a peer's process: its packages before ours, one thread, nothing from the network."""
    return {
        **os.environ,
        **_ONE_THREAD,
        "PYTHONPATH": str(peers.packages),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
    }


def _versions(peers: Peers, published: _Published | None) -> dict[str, str]:
    versions = {"vdiff-grpc": version("vdiff-grpc")}
    if peers.packages:
        versions["dlmserve"] = serving_peers.DLMSERVE
    if published:
        versions |= {name: commit[:7] for name, (_, commit) in serving_peers.REPOSITORIES.items()}
        versions["their transformers"] = published.transformers
    return versions


def _progress(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="", help="folder for serving.json and serving-results.md")
    parser.add_argument("--peers", default=".cache/peers", help="folder they are put in; none")
    parser.add_argument("--llada", default="", help="a checkout of ML-GSAI/LLaDA")
    parser.add_argument("--fast-dllm", default="", help="a checkout of NVlabs/Fast-dLLM")
    parser.add_argument("--dinfer", default="", help="a checkout of inclusionAI/dInfer")
    parser.add_argument("--width", type=int, default=256, help="of the checkpoint's body")
    parser.add_argument("--layers", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
