"""Bursts of requests with a latency budget: in time, and still right?

    python -m benchmarks.anytime [--requests 400] [--clock virtual|real] [--loads 0.5 1 2 3]
        [--seeds 8 9 10] [--out docs]

The tasks are those of tasks.py: a program checks every answer. Every request has a budget of 1.5
times what the fixed schedule of one token a step takes for it alone. The same arrivals, a Poisson
process of bursts and lulls, are served three ways: first come, first served by the fixed schedule;
the same requests with their budget, hurried as need be; and by confidence_threshold with the static
threshold whose tokens per forward come next to that. What a static threshold gives depends neither on
load nor on company, so its curve is drawn once. Load 1 is the rate at which the fixed
schedule uses up all steps with every place taken. A refused or late answer is a miss.

Virtual clock: the engine computes every token, but time passes by the medians of bare steps that
were timed when the run began, times a seeded log-normal error (sigma 0.1): arrivals, budgets and
what the engine learns are of that time, and the figures repeat. Real clock: all is as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.decoding import DEMO
from benchmarks.tasks import TASKS, Instance
from vdiff_grpc.engine import strategies as s
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Failed, Finished
from vdiff_grpc.engine.hurry import OVERLOADS, QUEUE, Hurry
from vdiff_grpc.engine.prompt_types import ChatMessage, ChatPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams, ResolvedRequest
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import BudgetError, QueueFullError

SEED = 8
BUDGET = 1.5  # times the fixed schedule's time alone
THRESHOLDS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3)
SIGMA = 0.1
PLACES = 32
SIZES = (1, 2, 4, 8, 16, 24, 32)  # rows of the steps that are timed


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the replay."""

    at_s: float
    instance: Instance
    num_tokens: int
    seed: int
    budget_s: float


class StepCurve:
    """Seconds of a step by its rows, as timed; between sizes on a line."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds

    def __call__(self, rows: int) -> float:
        sizes = sorted(self.seconds)
        if rows in self.seconds:
            return self.seconds[rows]
        high = next(size for size in sizes if size > rows)
        low = max(size for size in sizes if size < rows)
        share = (rows - low) / (high - low)
        return self.seconds[low] + share * (self.seconds[high] - self.seconds[low])


class Virtual:
    """A clock that only steps move."""

    def __init__(self, engine: Engine, curve: StepCurve) -> None:
        self.now_ns = 10**15
        self._curve = curve
        self._rng = random.Random(SEED)
        engine.clock = lambda: self.now_ns
        engine.before_step = self._step

    def _step(self, rows: Rows[Sequence]) -> None:
        error = self._rng.lognormvariate(0.0, SIGMA)
        self.now_ns += round(self._curve(len(rows)) * error * 1e9)

    def wait(self, until_ns: int) -> None:
        self.now_ns = max(self.now_ns, until_ns)


class Real:
    """The machine's own."""

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wait(self, until_ns: int) -> None:
        time.sleep(max(0.0, (until_ns - time.monotonic_ns()) / 1e9))


def engine_of(overload: str = "queue") -> Engine:
    config = EngineConfig(
        str(DEMO),
        device="cpu",
        threads=1,
        max_running_rows=PLACES,
        max_waiting_rows=100_000,
        max_queue_time_s=0.0,
        max_request_time_s=1e6,
        overload=overload,
    )
    engine = Engine(config)
    engine.warm_up()
    return engine


def timed_steps(engine: Engine, repeats: int) -> StepCurve:
    """The median of whole steps of so many rows of the tasks, sizes in turn."""
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(repeats):
        for size in SIZES:
            for key, asked in enumerate(_mixed(random.Random(SEED), size)):
                engine.add(key, _resolved(engine, asked, s.FixedSchedule()))
            while engine.has_work:
                engine.step()
                if engine.timing is not None and engine.timing.num_rows == size:
                    found[size].append(engine.timing.duration_ns / 1e9)
    medians = [statistics.median(found[size]) for size in SIZES]
    # more rows never take less
    return StepCurve(
        dict(zip(SIZES, [max(medians[: i + 1]) for i in range(len(SIZES))], strict=True))
    )


def replay(curve: StepCurve, load: float, count: int, seed: int) -> list[Asked]:
    """Arrivals at a load: bursts and lulls of some 20 requests each."""
    rng = random.Random(f"{seed} {load}")
    mixed = _mixed(rng, count)
    steps = statistics.fmean(asked.num_tokens + 1 for asked in mixed)
    rate = load * PLACES / (steps * curve(PLACES))
    now, asked, is_burst = 0.0, [], True
    for one in mixed:
        if rng.random() < 1 / 20:
            is_burst = not is_burst
        # as many requests in the one as in the other: 1 / (5/3) + 1 / (5/7) = 2
        now += rng.expovariate(rate * (5 / 3 if is_burst else 5 / 7))
        alone_s = (one.num_tokens + 1) * curve(1)
        asked.append(dataclasses.replace(one, at_s=now, budget_s=BUDGET * alone_s))
    scale = (count / rate) / now  # exactly the load
    return [dataclasses.replace(one, at_s=one.at_s * scale) for one in asked]


def serve(
    asked: Rows[Asked],
    strategy: s.Strategy,
    curve: StepCurve | None,
    *,
    hurried: bool,
    overload: str,
) -> report.Row:
    """One way of serving the replay. curve: of a virtual clock, or None for the real one."""
    engine = engine_of(overload)
    clock = Virtual(engine, curve) if curve is not None else Real()
    engine.hurry = Hurry(overload)  # what it knows is of this clock
    # it has served before: what there is to learn it has learnt
    lessons = _mixed(random.Random(SEED + 1), 2 * PLACES)
    for size in (1, 4, PLACES):
        for key, one in enumerate(lessons[:size]):
            engine.add(key, _resolved(engine, one, strategy))
        while engine.has_work:
            engine.step()
    begin_ns = clock.now_ns
    arrivals_ns = [begin_ns + round(one.at_s * 1e9) for one in asked]
    coming = 0
    right = in_time = useful = tokens = forwards = was_hurried = refused = 0
    latencies: list[float] = []
    while coming < len(asked) or engine.has_work:
        if not engine.has_work:
            clock.wait(arrivals_ns[coming])
        while coming < len(asked) and arrivals_ns[coming] <= clock.now_ns:
            one, arrival_ns = asked[coming], arrivals_ns[coming]
            request = _resolved(engine, one, strategy)
            due_ns = arrival_ns + round(one.budget_s * 1e9) if hurried else None
            request = dataclasses.replace(
                request, arrival_ns=arrival_ns, due_ns=due_ns, deadline_ns=None
            )
            try:
                engine.add(coming, request)
            except (BudgetError, QueueFullError):
                refused += 1
            coming += 1
        for key, event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Finished):
                continue
            output = event.outputs[0]
            is_right = asked[key].instance.is_right(output.text)
            is_in_time = event.total_time_ns <= asked[key].budget_s * 1e9
            right += is_right
            in_time += is_in_time
            useful += is_right and is_in_time
            tokens += len(output.tokens.ids)
            forwards += output.forward_passes
            was_hurried += output.hurried
            latencies.append(event.total_time_ns / 1e9 / asked[key].budget_s)
    answered = len(asked) - refused
    latencies.sort()
    return {
        "in time": in_time / len(asked),
        "accuracy": right / answered,
        "right and in time": useful / len(asked),
        "tokens/forward": tokens / forwards,
        "hurried": was_hurried / len(asked),
        "refused": refused / len(asked),
        "p50 / budget": latencies[len(latencies) // 2],
        "p99 / budget": latencies[math.ceil(0.99 * len(latencies)) - 1],
    }


def drawn(asked: Rows[Asked], strategy: s.Strategy) -> tuple[float, float]:
    """Tokens per forward and accuracy of a strategy, all requests at once."""
    engine = engine_of()
    for key, one in enumerate(asked):
        engine.add(key, _resolved(engine, one, strategy))
    right = tokens = forwards = 0
    while engine.has_work:
        for key, event in engine.step():
            assert isinstance(event, Finished)
            output = event.outputs[0]
            right += asked[key].instance.is_right(output.text)
            tokens += len(output.tokens.ids)
            forwards += output.forward_passes
    return tokens / forwards, right / len(asked)


def best_static(static: dict[float, tuple[float, float]], tokens_per_forward: float) -> float:
    """The best accuracy of a threshold, or a mixture of two, with so many tokens per forward.

    What a mixture of answers costs are forwards per token.
    """
    points = sorted((1 / pace, accuracy) for pace, accuracy in static.values())
    cost = 1 / tokens_per_forward
    reached = [
        low + (high - low) * (cost - a) / (b - a)
        for a, low in points
        for b, high in points
        if a < b and a <= cost <= b
    ]
    return max(reached, default=points[0][1] if cost < points[0][0] else points[-1][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0, 3.0])
    help_ = "the first is served in all ways, the others with a budget only"
    parser.add_argument("--seeds", type=int, nargs="+", default=[SEED], help=help_)
    parser.add_argument("--clock", choices=("virtual", "real"), default="virtual")
    parser.add_argument("--overload", nargs="+", choices=OVERLOADS, default=OVERLOADS)
    parser.add_argument("--repeats", type=int, default=3, help="of the timing of bare steps")
    parser.add_argument("--out", help="folder for anytime.json")
    arguments = parser.parse_args()
    curve = timed_steps(engine_of(), arguments.repeats)
    shown = ", ".join(f"{size}: {curve(size) * 1e3:.2f}" for size in SIZES)
    print(f"{report.machine()}; {arguments.clock} clock; ms of a step by rows: {shown}\n")
    clock = curve if arguments.clock == "virtual" else None
    rows: list[report.Row] = []

    def tell(load: float, name: str, figures: report.Row) -> report.Row:
        rows.append({"load": load, "served": name, **figures})
        shown = "  ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"load {load:g}  {name:24} {shown}", flush=True)
        return rows[-1]

    seed, *others = arguments.seeds
    static = {
        tau: drawn(replay(curve, 1.0, arguments.requests, seed), s.ConfidenceThreshold(tau))
        for tau in THRESHOLDS
    }
    for tau, (pace, accuracy) in static.items():
        print(f"threshold {tau}: accuracy {accuracy:.3f} at {pace:.2f} tokens per forward")
    for load in arguments.loads:
        asked = replay(curve, load, arguments.requests, seed)
        fixed = s.FixedSchedule()
        one = serve(asked, fixed, clock, hurried=False, overload="queue")
        tell(load, "fixed schedule", one)
        for overload in arguments.overload:
            ours = serve(asked, fixed, clock, hurried=True, overload=overload)
            at_equal = best_static(static, ours["tokens/forward"])
            told = {**ours, "best static accuracy": at_equal}
            tell(load, "with a budget" if overload == QUEUE else f"with a budget, {overload}", told)
        tau = min(static, key=lambda t: abs(static[t][0] - ours["tokens/forward"]))
        rule = s.ConfidenceThreshold(tau)
        near = serve(asked, rule, clock, hurried=False, overload="queue")
        tell(load, f"threshold {tau}", near)
        for other in others:
            asked = replay(curve, load, arguments.requests, other)
            ours = serve(asked, fixed, clock, hurried=True, overload=QUEUE)
            at_equal = best_static(static, ours["tokens/forward"])
            told = {**ours, "best static accuracy": at_equal}
            tell(load, f"with a budget, seed {other}", told)
        if arguments.out:
            whole = {
                "machine": report.machine(),
                "clock": arguments.clock,
                "overload": arguments.overload,
                "requests": arguments.requests,
                "seeds": arguments.seeds,
                "static": {
                    tau: {"tokens/forward": t, "accuracy": a} for tau, (t, a) in static.items()
                },
                "step_ms": {size: curve(size) * 1e3 for size in SIZES},
                "rows": rows,
            }
            path = Path(arguments.out) / "anytime.json"
            path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _mixed(rng: random.Random, count: int) -> list[Asked]:
    """Instances of all tasks in turn."""
    asked = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        asked.append(Asked(0.0, task.draw(rng), task.num_tokens, SEED + index, 0.0))
    return asked


def _request(asked: Asked, strategy: s.Strategy) -> Request:
    room = asked.num_tokens + 1
    params = RequestParams(
        max_new_tokens=room,
        temperature=0.0,
        seed=asked.seed,
        strategy=strategy,
    )
    return Request(ChatPrompt((ChatMessage("user", asked.instance.ask),)), params)


def _resolved(engine: Engine, asked: Asked, strategy: s.Strategy) -> ResolvedRequest:
    return resolve(_request(asked, strategy), engine.info, engine.limits, engine.tokenizer)


if __name__ == "__main__":
    main()
