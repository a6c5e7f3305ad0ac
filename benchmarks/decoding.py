"""Accuracy against tokens per forward, for every strategy that the embedded model has.

    python -m benchmarks.decoding [--prompts 50] [--strategies factor klass] [--out docs]

The tasks are those of tasks.py: their answers are checked by a program. Every setting gets the
same prompts, at temperature 0 and with fixed seeds, on a canvas that has room for the answer and
one end token. Forwards are those that the engine counts for the request (each draft of
`freedave` is one; the twin's own are not among them), tokens those of the answer without its end.
A round is a step of the engine, in which drafts are computed side by side. Nothing here is a time:
the figures are the same on any machine, up to ties in floating point.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks import curve, report
from benchmarks.tasks import TASKS, Instance, Task
from vdiff_grpc.engine import strategies as s
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Failed, Finished
from vdiff_grpc.engine.prompt_types import ChatMessage, ChatPrompt
from vdiff_grpc.engine.types import EngineConfig, Granularity, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

DEMO = Path(str(resources.files("vdiff_grpc") / "assets" / "demo"))
SEED = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """A strategy with its parameters. per_step: tokens per step of its schedule, 0: none."""

    line: str  # the curve that it is a point of
    label: str
    strategy: s.Strategy
    per_step: float = 0

    @property
    def name(self) -> str:
        return f"{self.line} {self.label}".strip()


ONE_TOKEN = Setting("fixed_schedule", "1/step", s.FixedSchedule(), 1)


def settings() -> Iterator[Setting]:
    """Every setting of the table; the line to hold is the first."""
    yield ONE_TOKEN
    yield Setting("left_to_right", "", s.LeftToRight())
    for k in (2, 4, 8):
        yield Setting("fixed_schedule", f"{k}/step", s.FixedSchedule(), k)
    for k in (1, 2, 4, 8):
        yield Setting("random", f"{k}/step", s.FixedSchedule(s.Remasking.RANDOM), k)
    for order in s.DreamOrder:
        for k in (1, 2, 4):
            line = f"dream {order.value}"
            yield Setting(line, f"{k}/step", s.DreamSchedule(order), k)
    for tau in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        yield Setting("confidence_threshold", f"{tau}", s.ConfidenceThreshold(tau))
    for f in (0.1, 0.25, 0.5, 1.0, 1.5, 2.0):
        yield Setting("factor", f"{f}", s.Factor(f))
    for bound in (0.01, 0.05, 0.1, 0.3, 0.6, 1.0):
        yield Setting("entropy_bound", f"{bound}", s.EntropyBound(bound))
    for tau in (0.7, 0.85, 0.95):
        yield Setting("dynamic_threshold", f"{tau}", s.DynamicThreshold(tau), 1)
    for tau, kl in ((0.5, 0.01), (0.7, 0.01), (0.9, 0.01), (0.7, 0.1)):
        yield Setting("klass", f"{tau}, kl {kl}", s.Klass(tau, kl), 1)
    for tau, relaxed in ((0.95, 0.85), (0.9, 0.75), (0.8, 0.6), (0.7, 0.5)):
        yield Setting("local_leap", f"{tau}/{relaxed}", s.LocalLeap(tau, relaxed))
    for tau in (0.6, 0.75, 0.9):
        yield Setting("adaptive_confidence", f"{tau}", s.AdaptiveConfidence(tau))
    for mixture in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        yield Setting("adaptive_parallel", f"R {mixture}", s.AdaptiveParallel(mixture))
    for drafts in (2, 4, 8):
        yield Setting("freedave", f"{drafts} drafts", s.FreeDave(drafts), 1)
    for tau, back in ((0.4, 0.7), (0.4, 0.9), (0.6, 0.9), (0.8, 0.9)):
        yield Setting("wino", f"{tau}/{back}", s.Wino(tau, back))
    for tau, edit in ((0.7, 0.9), (0.95, 0.9), (0.95, 0.99), (0.95, 1.0)):
        yield Setting("editing", f"{tau}/{edit}", s.Editing(tau, edit))
    for mode in s.RemdmMode:
        for share in (0.5, 1.0, 2.0):
            yield Setting(f"remdm {mode.value}", f"{share:g}/step", s.Remdm(mode), share)


def main() -> None:
    arguments = _arguments()
    engine = Engine(
        EngineConfig(
            arguments.model,
            device="cpu",
            threads=1,
            max_running_rows=64,
            max_waiting_rows=4096,
            default_block_length=arguments.block_length,
            aux_model_path=arguments.twin,
        )
    )
    print(f"{arguments.model}: {report.machine()}\n")
    chosen = [
        x
        for x in settings()
        if x == ONE_TOKEN or not arguments.strategies or x.strategy.NAME in arguments.strategies
    ]
    rows: list[report.Row] = []
    begin = time.monotonic()
    for setting in chosen:
        if setting.strategy.NAME not in engine.info.strategies:
            print(f"{setting.name}: this model does not have it")
            continue
        rows.append(measure(engine, setting, arguments.prompts))
        row = rows[-1]
        print(
            f"[{time.monotonic() - begin:5.0f} s] {setting.name}: {row['accuracy']:.1%} right "
            f"at {row['tokens/forward']:.2f} tokens per forward",
            flush=True,
        )
    verdict = recommend(rows)
    print("\n" + report.table([_short(row) for row in rows]) + "\n\n" + verdict["text"])
    if arguments.out:
        _write(Path(arguments.out), rows, verdict, arguments.prompts)


def measure(engine: Engine, setting: Setting, prompts: int, **more: Any) -> report.Row:
    """All tasks under one setting; `prompts` instances of each. more: of RequestParams."""
    tasks: dict[str, report.Row] = {}
    for task in TASKS:
        tasks[task.name] = _one_task(engine, setting, task, task.instances(prompts, SEED), more)
    keys = ("right", "count", "tokens", "forwards", "computed", "rounds", "remasked", "revised")
    sums = {key: sum(row[key] for row in tasks.values()) for key in keys}
    return {
        "setting": setting.name,
        "line": setting.line,
        "strategy": setting.strategy.NAME,
        "accuracy": sums["right"] / sums["count"],
        "tokens/forward": sums["tokens"] / sums["forwards"],
        "tokens/round": sums["tokens"] / sums["rounds"],
        **sums,
        "tasks": tasks,
    }


def _one_task(
    engine: Engine,
    setting: Setting,
    task: Task,
    instances: Sequence[Instance],
    more: dict[str, Any],
) -> report.Row:
    room = task.num_tokens + 1
    for key, instance in enumerate(instances):
        params = RequestParams(
            max_new_tokens=room,
            temperature=0.0,
            seed=SEED + key,
            steps=math.ceil(room / setting.per_step) if setting.per_step else None,
            strategy=setting.strategy,
            **more,
        )
        prompt = ChatPrompt((ChatMessage("user", instance.ask),))
        request = Request(prompt, params, granularity=Granularity.STEPS)
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))
    right = tokens = forwards = computed = rounds = remasked = revised = 0
    while engine.has_work:
        events = engine.step()
        rounds += len({key for key, _ in events})
        for key, event in events:
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Finished):
                continue
            output = event.outputs[0]
            right += instances[key].is_right(output.text)
            tokens += len(output.tokens.ids)
            forwards += output.forward_passes
            computed += output.computed_tokens
            remasked += output.remasked
            revised += output.revised
    return {
        "accuracy": right / len(instances),
        "tokens/forward": tokens / forwards,
        "right": right,
        "count": len(instances),
        "tokens": tokens,
        "forwards": forwards,
        "computed": computed,
        "rounds": rounds,
        "remasked": remasked,
        "revised": revised,
    }


def recommend(rows: Sequence[report.Row]) -> dict[str, Any]:
    """The most tokens per forward whose accuracy is within one standard error of the line.

    The standard error is the binomial one of the line's accuracy over all tasks, with one right
    and one wrong answer added, so that it is not zero where nothing was wrong. What needs a
    second model cannot be a default: it is told beside it.
    """
    line = rows[0]
    share = (line["right"] + 1) / (line["count"] + 2)
    error = math.sqrt(share * (1 - share) / line["count"])
    least = line["accuracy"] - error
    holding = [row for row in rows if row["accuracy"] >= least]
    alone = [row for row in holding if row["strategy"] != s.AdaptiveParallel.NAME]
    best, ever = (max(some, key=lambda r: r["tokens/forward"]) for some in (alone, holding))
    text = (
        f"The line to hold: one token per forward is right in {line['accuracy']:.1%} of "
        f"{line['count']} answers at {line['tokens/forward']:.2f} tokens per forward; the standard "
        f"error is {error:.1%}, so {least:.1%} holds it.\n"
        f"Recommended default: {_told(best, line)}."
    )
    near = [row for row in alone if row["tokens/forward"] >= 0.98 * best["tokens/forward"]]
    if len(near) > 1:
        text += " Within 2 % of it, and right as often as the line asks: "
        text += ", ".join(
            f"{row['setting']} ({row['tokens/forward']:.2f})" for row in near if row is not best
        )
        text += "."
    if ever is not best:
        text += (
            f"\nWith the twin as auxiliary model: {_told(ever, line)}. The twin's own pass over "
            "the canvas at each step is not counted; with it the figure is about half."
        )
    return {"line": line["accuracy"], "error": error, "best": best["setting"], "text": text}


def _told(row: report.Row, line: report.Row) -> str:
    return (
        f"{row['setting']}, {row['tokens/forward']:.2f} tokens per forward at "
        f"{row['accuracy']:.1%}, {row['tokens/forward'] / line['tokens/forward']:.2f} times the "
        "line's"
    )


def _short(row: report.Row) -> report.Row:
    kept = {key: row[key] for key in ("setting", "accuracy", "tokens/forward", "tokens/round")}
    return kept | {name: task["accuracy"] for name, task in row["tasks"].items()}


def _write(out: Path, rows: Sequence[report.Row], verdict: dict[str, Any], prompts: int) -> None:
    """decoding.json, decoding-results.md and decoding-curve.svg."""
    whole = {"machine": report.machine(), "prompts": prompts, "seed": SEED, **verdict}
    text = json.dumps({**whole, "rows": list(rows)}, indent=1)
    (out / "decoding.json").write_text(text + "\n", encoding="utf-8")
    (out / "decoding-results.md").write_text(_markdown(rows, verdict, prompts), encoding="utf-8")
    (out / "decoding-curve.svg").write_text(
        curve.draw(rows, [task.name for task in TASKS]), encoding="utf-8"
    )


def _markdown(rows: Sequence[report.Row], verdict: dict[str, Any], prompts: int) -> str:
    names = [task.name for task in TASKS]
    machine = report.machine()
    lines = [
        "# Decoding strategies on the embedded model",
        "",
        f"Written by `python -m benchmarks.decoding --prompts {prompts}`: {prompts} held-out prompts "
        "of each task, temperature 0, a canvas of the answer and one end token. Each cell is the "
        "share of right answers at tokens per forward (tokens without the end, all forwards of the "
        "request counted). In a round drafts are computed side by side: it is what a request waits for. "
        "Ratios and counts, not times; "
        f"measured on {machine['processor']}, CPU, float32, torch {machine['torch']}.",
        "",
        "![accuracy against tokens per forward](decoding-curve.svg)",
        "",
        verdict["text"].replace("\n", "\n\n"),
        "",
        "`running totals`: each digit follows from the request, so tokens of one step depend on "
        "each other little. `n holes`: ten digits of which n are missing, to be filled in so that "
        "every digit occurs once, in any order; what is put in one hole rules it out for the "
        "others. `editing` asks what a model says of tokens that it sees; this one was not trained for "
        "that. In bold: accuracy within the standard error of the line, over all tasks.",
        "",
        "| setting | all tasks | tokens per round | " + " | ".join(names) + " |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        cells = [row, *(row["tasks"][name] for name in names)]
        texts = [f"{c['accuracy']:.1%} @ {c['tokens/forward']:.2f}" for c in cells]
        if row["accuracy"] >= verdict["line"] - verdict["error"]:
            texts[0] = f"**{texts[0]}**"
        texts.insert(1, f"{row['tokens/round']:.2f}")
        lines.append(f"| {row['setting']} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=str(DEMO), help="checkpoint folder; the embedded model")
    parser.add_argument("--block-length", type=int, default=EngineConfig("").default_block_length)
    parser.add_argument(
        "--twin", default=str(DEMO / "twin"), help="autoregressive model for adaptive_parallel"
    )
    parser.add_argument("--prompts", type=int, default=50, help="instances of each task")
    parser.add_argument(
        "--strategies", nargs="*", default=[], help="only these, by their names in the contract"
    )
    parser.add_argument("--out", default="", help="folder for the JSON, the table and the picture")
    return parser.parse_args()


if __name__ == "__main__":
    main()
