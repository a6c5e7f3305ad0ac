"""Where a step's time goes, and what it takes beyond the bare forward pass.

    python -m benchmarks.step [--model PATH] [--rows 1 4 16 32] [--json FILE]

Equal requests take some steps, twice. First each step is timed in turn with the bare pass of the
very same packed rows and head rows, on tensors that already lie on the device: `beyond` is the
median share of the step that is not that pass. Then the parts of a step are timed by themselves.
On a CPU with one thread the time is that of the thread, so that neighbours on the machine do not
count; else it is the wall's. The prompt is not text, so that a threshold is rarely reached and a request has many steps. A second
model is random, with few layers and LLaDA-8B's vocabulary: there head and decoding are the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, shapes
from vdiff_grpc.engine import runner as runner_module
from vdiff_grpc.engine.decoding.registry import rule_of
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.messages import StepReport
from vdiff_grpc.engine.opened import OpenRequest
from vdiff_grpc.engine.packing import pack
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import (
    ConfidenceThreshold,
    EntropyBound,
    FixedSchedule,
    Klass,
    Strategy,
)
from vdiff_grpc.engine.types import (
    AttentionPattern,
    EngineConfig,
    Granularity,
    Request,
    RequestParams,
)
from vdiff_grpc.engine.validation import resolve

STRATEGIES: dict[str, Strategy] = {
    "fixed_schedule": FixedSchedule(),
    "confidence_threshold": ConfidenceThreshold(0.9),
    "entropy_bound": EntropyBound(),
    "klass": Klass(),
}
PHASES = ("schedule", "plan", "pack", "body", "head", "decode", "to host", "commit", "events")
_PROMPT = TokensPrompt(tuple(range(100, 116)))
_LARGE = shapes.Shape(vocab=126_464, hidden=256, intermediate=768)


class Stopwatch:
    """Seconds spent in named parts, each without the parts inside it. now: seconds of a clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        self._now = now
        self._inside: list[str] = []
        self._since = 0.0

    def enter(self, name: str) -> None:
        self._note()
        self._inside.append(name)

    def leave(self) -> None:
        self._note()
        self._inside.pop()

    def around(self, owner: object, attribute: str, name: str) -> Callable[[], None]:
        """Times a function of an object or a module from now on. Returns what undoes it."""
        inner, held = getattr(owner, attribute), attribute in vars(owner)

        def timed(*args: Any, **named: Any) -> Any:
            self.enter(name)
            try:
                return inner(*args, **named)
            finally:
                self.leave()

        setattr(owner, attribute, timed)
        if held:
            return lambda: setattr(owner, attribute, inner)
        return lambda: delattr(owner, attribute)

    def _note(self) -> None:
        now = self._now()
        if self._inside:
            self.spent_s[self._inside[-1]] += now - self._since
        self._since = now


def measure(engine: Engine, params: RequestParams, num_rows: int, num_steps: int) -> report.Row:
    """`num_rows` requests at once, twice. Times in milliseconds."""
    assert engine.info.attention is AttentionPattern.FULL, "the bare pass would fill a cache"
    before = engine.statistics
    step_ms, bare_ms = _beside_bare(engine, params, num_rows, num_steps)
    after = engine.statistics
    tokens = after.committed_tokens - before.committed_tokens
    forwards = after.forward_passes - before.forward_passes
    shares = [1 - bare / step for step, bare in zip(step_ms, bare_ms, strict=True)]
    return {
        "rows": num_rows,
        "tokens": tokens,
        "forwards": forwards,
        "steps": len(step_ms),
        "tokens/s": tokens / (sum(step_ms) / 1e3),
        "step ms": statistics.median(step_ms),
        "bare ms": statistics.median(bare_ms),
        "beyond": statistics.median(shares),
        **_parts(engine, params, num_rows, num_steps),
    }


def _add(engine: Engine, params: RequestParams, num_rows: int) -> None:
    for key in range(num_rows):
        request = Request(
            _PROMPT, dataclasses.replace(params, seed=key), granularity=Granularity.STEPS
        )
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))


def _end(engine: Engine, num_rows: int) -> None:
    for key in range(num_rows):
        engine.abort(key)


def _beside_bare(
    engine: Engine, params: RequestParams, num_rows: int, num_steps: int
) -> tuple[list[float], list[float]]:
    """[steps] milliseconds of each step and of its bare pass, which comes first every other time."""
    _add(engine, params, num_rows)
    engine.step()
    step_ms: list[float] = []
    bare_ms: list[float] = []
    while engine.has_work and len(step_ms) < num_steps:
        bare = _bare_pass(engine)
        if len(step_ms) % 2:
            bare_ms.append(timed_ms(engine, bare))
        step_ms.append(timed_ms(engine, engine.step))
        if len(bare_ms) < len(step_ms):
            bare_ms.append(timed_ms(engine, bare))
    _end(engine, num_rows)
    return step_ms, bare_ms


def _bare_pass(engine: Engine) -> Callable[[], object]:
    """Body and head of the rows that run now."""
    model, rows = engine.model, engine.scheduler.running
    packed = pack(rows, [rule_of(row).plan(row) for row in rows], 0, engine.runner.fill).tokens
    token_ids, position_ids, head = (
        torch.from_numpy(values).to(model.device)
        for values in (packed.token_ids, packed.position_ids, packed.head)
    )
    return lambda: model.logits(token_ids, position_ids, packed.layout, head)


def _parts(engine: Engine, params: RequestParams, num_rows: int, num_steps: int) -> report.Row:
    """Median milliseconds of each part of a step, and of pickling its report for the server."""
    now = _clock(engine)
    watch = Stopwatch(now)
    undo = [
        watch.around(owner, attribute, name)
        for owner, attribute, name in (
            (engine, "_expire", "schedule"),
            (engine.scheduler, "schedule", "schedule"),
            (engine.scheduler, "remove_finished", "schedule"),
            (engine.runner, "_plan", "plan"),
            (runner_module, "pack", "pack"),
            (engine.runner, "forward", "head"),
            (engine.runner, "_decode", "decode"),
            (engine.runner, "_to_host", "to host"),
            (engine, "_apply", "commit"),
            (OpenRequest, "tell", "events"),
            (engine, "_finish", "events"),
        )
    ]
    body = engine.model.network.base_model
    assert isinstance(body, torch.nn.Module)
    hooks = [
        body.register_forward_pre_hook(lambda *_: watch.enter("body")),
        body.register_forward_hook(lambda *_: watch.leave()),
    ]
    undo += [hook.remove for hook in hooks]
    parts: dict[str, list[float]] = defaultdict(list)
    report_bytes: list[int] = []
    try:
        _add(engine, params, num_rows)
        while engine.has_work and len(report_bytes) < num_steps:
            watch.spent_s.clear()
            events = engine.step()
            for name in PHASES:
                parts[name].append(watch.spent_s[name] * 1e3)
            begin = now()
            told = pickle.dumps(StepReport(tuple(events), engine.statistics))
            parts["report"].append((now() - begin) * 1e3)
            report_bytes.append(len(told))
    finally:
        for restore in undo:
            restore()
        _end(engine, num_rows)
    return {
        **{name: statistics.median(found) for name, found in parts.items()},
        "report bytes": int(statistics.median(report_bytes)),
    }


def timed_ms(engine: Engine, work: Callable[[], object]) -> float:
    """What the work takes until the device has done it."""
    now = _clock(engine)
    begin = now()
    work()
    return (now() - begin) * 1e3


def _clock(engine: Engine) -> Callable[[], float]:
    """Seconds, when all work so far is done."""
    if engine.model.device.type == "cuda":
        return _cuda_clock
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _cuda_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_all(
    engine: Engine, name: str, row_counts: list[int], num_steps: int
) -> list[report.Row]:
    """Every strategy at temperature 0 and 1, at each number of rows."""
    rows = []
    for num_rows in row_counts:
        for strategy_name, strategy in STRATEGIES.items():
            for temperature in (0.0, 1.0):
                params = RequestParams(
                    max_new_tokens=64,
                    temperature=temperature,
                    strategy=strategy,
                    ignore_eos=True,
                )
                found = measure(engine, params, num_rows, num_steps)
                rows.append(
                    {"model": name, "strategy": strategy_name, "T": int(temperature), **found}
                )
                print(f"{name}: {strategy_name}, T {temperature:g}, {num_rows} rows", flush=True)
    return rows


def page(rows: Sequence[report.Row]) -> str:
    """The tables of docs/step-results.md."""
    setting = ("model", "rows", "strategy", "T")
    whole = report.markdown(rows, (*setting, "tokens/s", "step ms", "bare ms", "beyond"))
    parts = [row for row in rows if row["rows"] in (4, 16)]
    return f"{whole}\n{report.markdown(parts, (*setting, *PHASES, 'report'))}"


def main() -> None:
    arguments = _arguments()
    engine = _engine(arguments.model, arguments)
    rows = measure_all(engine, Path(arguments.model).name, arguments.rows, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(str(shapes.write(Path(folder), _LARGE)), arguments)
        rows += measure_all(engine, "large vocabulary", arguments.large_rows, arguments.steps)
    print(report.table(rows))
    report.write(arguments.json, rows, steps=arguments.steps)


def _engine(path: str, arguments: argparse.Namespace) -> Engine:
    engine = Engine(EngineConfig(path, device=arguments.device, threads=arguments.threads))
    engine.warm_up()
    return engine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    demo = str(resources.files("vdiff_grpc") / "assets" / "demo")
    parser.add_argument("--model", default=demo, help="checkpoint folder; the embedded model")
    parser.add_argument("--steps", type=int, default=24, help="of each setting")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32], help="at once")
    parser.add_argument(
        "--large-rows", type=int, nargs="*", default=[4], help="at once, of the large vocabulary"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--json", default="", help="write the figures here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
