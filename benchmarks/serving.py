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
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import gateways, report, serving_page, serving_peers
from benchmarks.gateways import Kind, PeerError, Running
from benchmarks.ideal import Arrival, latencies
from benchmarks.serving_clients import Counts, Grpc, Http, Server, closed_loop
from benchmarks.serving_latency import bare_times, filled, latency_rows, mean_times
from benchmarks.serving_library import ONE_THREAD, Peers, Published, environ, in_process
from benchmarks.serving_work import Size, Work, steps_of, works_of
from benchmarks.wire import request
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.types import EngineConfig


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


def measure(checkpoint: Path, peers: Peers, scratch: Path, size: Size) -> dict[str, Any]:
    """Starts everything, measures, ends everything."""
    began = time.monotonic()
    skipped: list[str] = []
    with ExitStack() as stack:
        engine = Engine(EngineConfig(str(checkpoint), device="cpu", dtype="float32", threads=1))
        engine.warm_up()
        published = None
        if peers.packages and peers.modelling and peers.llada:
            report.progress("LLaDA's generate.py starts")
            published = stack.enter_context(Published.started(checkpoint, peers, scratch))
        figures: dict[str, Any] = {"in process": in_process(engine, published, size.rounds)}

        report.progress("servers start")
        servers, running = _serve(stack, checkpoint, peers, scratch)
        answers = {server.name: server.ask(works_of(1, seed=1)[0]) for server in servers}
        if len(set(answers.values())) > 1:
            skipped.append(f"equal answers: {answers}")
        figures["throughput"] = _throughput(engine, servers, running, size)
        capacities = {
            row["server"]: row["tokens/s"]
            for row in figures["throughput"]
            if row["clients"] == min(8, max(size.clients))
        }
        figures["latency"] = latency_rows(engine, published, servers, capacities, size)
    return figures | {
        "skipped": skipped,
        "size": {name: getattr(size, name) for name in Size.__slots__},
        "answers equal": len(set(answers.values())) == 1,
        "versions": _versions(peers, published),
        "date": time.strftime("%Y-%m-%d"),
        "minutes": (time.monotonic() - began) / 60,
        "load average": os.getloadavg(),
    }


# --- throughput --------------------------------------------------------------------


def _serve(
    stack: ExitStack, checkpoint: Path, peers: Peers, scratch: Path
) -> tuple[list[Server], dict[str, list[Running]]]:
    """All servers, ready; whose processes each one's are."""
    words = f"-m vdiff_grpc serve --port {{port}} --metrics-port 0 --model {checkpoint}"
    command = (sys.executable, *words.split(), "--dtype", "float32", "--threads", "1")
    name = checkpoint.name
    kind = Kind("vdiff-grpc", version("vdiff-grpc"), command, "", "", ONE_THREAD)
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
                **environ(peers, scratch),
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
            works = works_of(max(clients, 2), seed=clients + 100 * done)
            for server in servers:
                before, cpu_s = server.counts(), _cpu_s(running[server.name])
                seconds, tokens = closed_loop(server, clients, works)
                spent = server.counts().since(before)
                sample = (seconds, tokens, _cpu_s(running[server.name]) - cpu_s, spent)
                samples.setdefault((clients, server.name), []).append(sample)
                report.progress(
                    f"{clients} clients, round {done + 1}, {server.name}: {seconds:.0f} s"
                )
        tables.append(bare_times(engine))
        # Who waits for a client waits for a row.
        at_once = [Arrival(0.0, steps_of(work)) for work in works]
        ends_s = latencies(at_once, filled(mean_times(tables)), clients)
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


# --- setting up --------------------------------------------------------------------


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


def _versions(peers: Peers, published: Published | None) -> dict[str, str]:
    versions = {"vdiff-grpc": version("vdiff-grpc")}
    if peers.packages:
        versions["dlmserve"] = serving_peers.DLMSERVE
    if published:
        versions |= {name: commit[:7] for name, (_, commit) in serving_peers.REPOSITORIES.items()}
        versions["their transformers"] = published.transformers
    return versions


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
