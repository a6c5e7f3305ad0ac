"""Latency under load over the ideal schedule, and the table of bare forward passes that it rests on."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import report
from benchmarks.ideal import Arrival, StepTimes, latencies
from benchmarks.serving_clients import Server, open_loop
from benchmarks.serving_library import Published
from benchmarks.serving_peers import MASK_ID
from benchmarks.serving_work import BLOCK, TOKENS_PER_STEP, Size, Work, random_prompt, steps_of
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.exact import whole_rows

_CANVAS = 96  # of the table's bare forward passes
_BODY_ROWS = (1, 4, 12, 32)
_HEADS = (8, 32, 96, 256)
_NEW = (32, 64, 96)
_MAX_ROWS = 32  # the engine's default
_DLMSERVE_ROWS = 8  # its default


def latency_rows(
    engine: Engine,
    published: Published | None,
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
                Work(random_prompt(draw, draw.randint(16, 48)), new, BLOCK, new // TOKENS_PER_STEP)
                for new in (draw.choice(_NEW) for _ in range(count))
            ]
            mean = statistics.mean(work.new for work in works)
            rate = load * capacities[server.name] / mean
            at_s = 0.0
            arrivals_s = [at_s := at_s + draw.expovariate(rate) for _ in works]
            tables = [bare_times(engine)]
            theirs = [_padded_times(published)] if is_peer and published else []
            report.progress(f"{server.name}, load {load}: {arrivals_s[-1]:.0f} s")
            before = server.counts()
            taken = open_loop(server, works, arrivals_s)
            spent = server.counts().since(before)
            tables.append(bare_times(engine))
            if is_peer and published:
                theirs.append(_padded_times(published))
            arrivals = [
                Arrival(at_s, steps_of(work)) for at_s, work in zip(arrivals_s, works, strict=True)
            ]
            own = mean_times(theirs or tables)
            times = mean_times(tables)
            ideals = {
                "ideal": latencies(arrivals, filled(times), _MAX_ROWS),
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


def _padded_times(published: Published) -> StepTimes:
    """The same of the published modelling code, whose head takes every position."""
    points = []
    for rows in (1, 8):
        asked = {"rows": rows, "length": _CANVAS, "id": MASK_ID}
        seconds = statistics.median(published.ask("bare", **asked)["s"] for _ in range(3))
        points.append((rows * _CANVAS, seconds))
    return StepTimes(tuple(points), ((0, 0.0), (1, 0.0)))


def mean_times(tables: Sequence[StepTimes]) -> StepTimes:
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


def filled(times: StepTimes) -> Callable[[int, int], float]:
    return lambda tokens, heads: times(whole_rows(tokens), whole_rows(heads))


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
