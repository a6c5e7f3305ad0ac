"""What a long canvas does to a short one beside it, with and without turns: gaps between its steps.

The embedded model with room for more positions: its answers mean nothing, its times do. The settings
run in turn, a round each, and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from benchmarks import report
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams, TokensPrompt
from vdiff_grpc.engine.validation import resolve

_PROMPT = 16
_LONG, _SHORT = 1, 2


def main() -> None:
    arguments = _arguments()
    print(report.machine(), "\n")
    rows = measure(
        arguments.long, arguments.short, arguments.steps, arguments.targets, arguments.rounds
    )
    print(report.table(rows))
    report.write(arguments.json, rows, long=arguments.long, short=arguments.short)


def measure(
    long: int, short: int, num_steps: int, targets: Sequence[int], num_rounds: int
) -> list[report.Row]:
    """A long and a short canvas for as long as the short one takes, then 16 short ones alone.

    num_steps: of the short canvas. Gaps are over those with target 0, every row in every step.
    """
    with tempfile.TemporaryDirectory() as folder:
        _roomy_model(Path(folder), long)
        engines = {
            target: Engine(EngineConfig(folder, device="cpu", target_step_tokens=target))
            for target in (0, *targets)
        }
        for engine in engines.values():
            engine.warm_up()
        beside = {target: list[_Beside]() for target in engines}
        alike = {target: list[float]() for target in engines}
        for _ in range(num_rounds):
            for target, engine in engines.items():
                beside[target].append(_Beside(engine, long, short, num_steps))
                alike[target].append(_alike_s(engine, short))
    rows = []
    for target in engines:

        def ratio(name: str, target: int = target) -> float:
            pairs = zip(beside[target], beside[0], strict=True)
            return float(statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs))

        rows.append(
            {
                "target": target,
                "steps": beside[target][0].num_steps,
                "of the long": beside[target][0].num_long,
                "p50 gap ms": statistics.median(one.p50_ms for one in beside[target]),
                "p50": ratio("p50_ms"),
                "p95": ratio("p95_ms"),
                "short's latency": ratio("latency_ms"),
                "tokens/s": ratio("tokens_per_s"),
                "16 alike, time": statistics.median(
                    a / b for a, b in zip(alike[target], alike[0], strict=True)
                ),
            }
        )
    return rows


class _Beside:
    """One run: gaps of the short row's steps, and tokens computed by all."""

    def __init__(self, engine: Engine, long: int, short: int, num_steps: int) -> None:
        _add(engine, _LONG, long - _PROMPT, long - _PROMPT)
        _add(engine, _SHORT, short - _PROMPT, num_steps)
        seen: list[set[int]] = []
        engine.before_step = lambda rows: seen.append({row.key for row in rows})
        ends: list[float] = []
        begin = time.perf_counter()
        is_open = True
        while is_open:
            is_open = all(key != _SHORT for key, _ in engine.step())
            if _SHORT in seen[-1]:
                ends.append(time.perf_counter())
        total_s = time.perf_counter() - begin
        engine.abort(_LONG)
        engine.before_step = lambda rows: None
        gaps_ms = np.diff([begin, *ends]) * 1e3
        self.p50_ms, self.p95_ms = (float(np.percentile(gaps_ms, p)) for p in (50, 95))
        self.latency_ms = total_s * 1e3
        self.num_steps = len(seen)
        self.num_long = sum(_LONG in keys for keys in seen)
        num_short = sum(_SHORT in keys for keys in seen)
        self.tokens_per_s = (self.num_long * long + num_short * short) / total_s


def _alike_s(engine: Engine, short: int) -> float:
    """Seconds for 16 short canvases at once, to their end."""
    for key in range(16):
        _add(engine, key, short - _PROMPT, 8)
    begin = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begin


def _add(engine: Engine, key: int, num_new: int, steps: int) -> None:
    params = RequestParams(
        max_new_tokens=num_new, block_length=num_new, steps=steps, ignore_eos=True, seed=key
    )
    request = Request(TokensPrompt(tuple(range(100, 100 + _PROMPT))), params)
    engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))


def _roomy_model(folder: Path, positions: int) -> None:
    """The embedded model, of so many positions."""
    demo = Path(str(resources.files("vdiff_grpc") / "assets" / "demo"))
    for file in demo.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    config["max_sequence_length"] = max(positions, config["max_sequence_length"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long canvas")
    parser.add_argument("--short", type=int, default=64, help="tokens of a short one")
    parser.add_argument("--steps", type=int, default=24, help="steps of the short one")
    parser.add_argument("--targets", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="write the figures here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
