"""What the approximate caches cost in accuracy and save in work, on the embedded model.

    python -m benchmarks.caches [--prompts 50] [--out docs]

The tasks of tasks.py, whose answers a program checks, at temperature 0 with fixed seeds. Computed
tokens are those that forward passes have computed, prompts included: what a cache saves is
missing there. CPU time is the process's own, all settings in turn in one run, beside `none`'s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.decoding import DEMO, Setting, measure
from vdiff_grpc.engine import strategies as s
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.types import EngineConfig

RULES = (
    Setting("entropy_bound", "0.05", s.EntropyBound(0.05)),
    Setting("confidence_threshold", "0.95", s.ConfidenceThreshold(0.95)),
    Setting("fixed_schedule", "1/step", s.FixedSchedule(), 1),
)
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("prefix", {"cache": CacheKind.PREFIX}),
    ("dual", {"cache": CacheKind.DUAL}),
    ("dual, anew every 4", {"cache": CacheKind.DUAL, "cache_refresh_steps": 4}),
    ("dual, anew every 2", {"cache": CacheKind.DUAL, "cache_refresh_steps": 2}),
)
_COLUMNS = ("rule", "block", "cache", "right", "tokens/forward", "computed/token", "CPU/none")


def main() -> None:
    arguments = _arguments()
    engine = Engine(
        EngineConfig(str(DEMO), device="cpu", threads=1, max_running_rows=16, max_waiting_rows=4096)
    )
    print(f"{report.machine()}\n")
    rows = compare(engine, arguments.prompts, arguments.blocks, arguments.rounds)
    print(report.table(rows))
    if arguments.out:
        out = Path(arguments.out)
        report.write(str(out / "caches.json"), rows, prompts=arguments.prompts)
        (out / "caches-table.md").write_text(report.markdown(rows, _COLUMNS), encoding="utf-8")


def compare(engine: Engine, prompts: int, blocks: list[int], rounds: int) -> list[report.Row]:
    """A row per rule, block length and cache."""
    rows = []
    for rule in RULES:
        for block in blocks:
            found: dict[str, report.Row] = {}
            seconds: dict[str, list[float]] = {name: [] for name, _ in KINDS}
            for _ in range(rounds):
                for name, more in KINDS:
                    begin = time.process_time()
                    found[name] = measure(engine, rule, prompts, block_length=block, **more)
                    seconds[name].append(time.process_time() - begin)
            for name, row in found.items():
                ratios = [a / b for a, b in zip(seconds[name], seconds["none"], strict=True)]
                rows.append(
                    {
                        "rule": rule.name,
                        "block": block,
                        "cache": name,
                        "right": row["accuracy"],
                        "tokens/forward": row["tokens/forward"],
                        "computed/token": row["computed"] / row["tokens"],
                        "CPU/none": statistics.median(ratios),
                    }
                )
            report.progress(f"{rule.name}, blocks of {block}")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=50, help="of each task")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 32], help="block lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="folder for caches.json and the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
