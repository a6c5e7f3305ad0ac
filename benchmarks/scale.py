"""How a step's time grows with rows, canvas, prompt and vocabulary, beside its arithmetic.

    python -m benchmarks.scale [--json FILE] [--plot FILE]

A random network of LLaDA's layout; one size grows at a time. The arithmetic counts a step's
floating-point operations: linear layers of all packed tokens, attention of each row to itself,
and the head of the positions that are still masked. It is put in milliseconds by the smallest size
of each line. `growth` is the time over that prediction: above 1, something grows faster than the
arithmetic. `beyond` is the share of the step that is not body and head.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.scale_plot import draw
from benchmarks.shapes import Shape, write
from benchmarks.step import timed_ms
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.packing import PackedStep
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

LINES: dict[str, tuple[int, ...]] = {
    "rows": (1, 2, 4, 8, 16, 32, 64),
    "canvas": (64, 128, 256, 512, 1024, 2048, 4096),
    "prompt": (16, 64, 256, 1024, 4000),
    "vocabulary": (4_096, 16_384, 65_536, 126_464),
}
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """What is computed: equal rows, each of a prompt and as many new tokens as the canvas has left.

    The active block has _BLOCK positions, of which one is filled in each step.
    """

    rows: int = 4
    canvas: int = 128
    prompt: int = 64
    vocab: int = 4_096

    def of(self, line: str, size: int) -> Setting:
        """This with one size changed."""
        match line:
            case "rows":
                return dataclasses.replace(self, rows=size)
            case "canvas":
                return dataclasses.replace(self, canvas=size, prompt=min(self.prompt, size // 2))
            case "prompt":
                return dataclasses.replace(self, prompt=size, canvas=size + 64)
        return dataclasses.replace(self, vocab=size)

    def flops(self, shape: Shape, num_steps: int) -> float:
        """Of the median one of so many steps from the block's beginning."""
        masked = _BLOCK - (num_steps - 1) / 2
        of_row = self.canvas * shape.token_flops + shape.attention_flops(self.canvas)
        return self.rows * (of_row + masked * shape.head_flops)


def measure(
    lines: dict[str, Sequence[int]], base: Setting, shape: Shape, num_steps: int, threads: int
) -> list[report.Row]:
    """One row for every size of every line."""
    rows = []
    for vocab in sorted({base.vocab, *lines.get("vocabulary", ())}):
        grown = dataclasses.replace(shape, vocab=vocab)
        with tempfile.TemporaryDirectory() as folder:
            config = EngineConfig(
                str(write(Path(folder), grown)),
                max_running_rows=64,
                max_step_tokens=1 << 17,
                threads=threads,
            )
            engine = Engine(config)
        for line, sizes in lines.items():
            for size in sizes:
                setting = base.of(line, size)
                if setting.vocab == vocab:
                    found = _measure(engine, setting, num_steps)
                    flops = setting.flops(grown, num_steps)
                    rows.append({"line": line, "size": size, **found, "Mflop": flops / 1e6})
                    print(f"{line} {size}: {found['step ms']:.3g} ms", flush=True)
    return _beside_arithmetic(rows, list(lines))


def _measure(engine: Engine, setting: Setting, num_steps: int) -> report.Row:
    params = RequestParams(
        max_new_tokens=setting.canvas - setting.prompt,
        block_length=_BLOCK,
        strategy=FixedSchedule(),
        temperature=0.0,
        ignore_eos=True,
        seed=0,
    )
    request = Request(TokensPrompt((5,) * setting.prompt), params)
    for key in range(setting.rows):
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))
    forward_ms: list[float] = []
    forward = engine.runner.forward

    def timed(packed: PackedStep) -> torch.Tensor:
        logits: list[torch.Tensor] = []
        forward_ms.append(timed_ms(engine, lambda: logits.append(forward(packed))))
        return logits[0]

    engine.runner.forward = timed  # type: ignore[method-assign]
    try:
        step_ms = [timed_ms(engine, engine.step) for _ in range(num_steps)]
    finally:
        engine.runner.forward = forward  # type: ignore[method-assign]
        for key in range(setting.rows):
            engine.abort(key)
    shares = [1 - inner / outer for inner, outer in zip(forward_ms, step_ms, strict=True)]
    return {"step ms": statistics.median(step_ms), "beyond": statistics.median(shares)}


def _beside_arithmetic(rows: list[report.Row], lines: list[str]) -> list[report.Row]:
    """In the order of the lines, with what the arithmetic predicts from each one's smallest size."""
    done = []
    for line in lines:
        mine = sorted((row for row in rows if row["line"] == line), key=lambda row: row["size"])
        rate = mine[0]["step ms"] / mine[0]["Mflop"]
        for row in mine:
            predicted = row["Mflop"] * rate
            done.append({**row, "predicted ms": predicted, "growth": row["step ms"] / predicted})
    return done


def page(rows: Sequence[report.Row]) -> str:
    """The table of docs/step-results.md."""
    columns = ("line", "size", "step ms", "predicted ms", "growth", "beyond")
    return report.markdown(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="of each size")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", default="", help="write the figures here, too")
    parser.add_argument("--plot", default="", help="write an SVG here")
    arguments = parser.parse_args()
    shape = Shape(vocab=0, hidden=128, intermediate=384, layers=2)
    lines: dict[str, Sequence[int]] = dict(LINES)
    rows = measure(lines, Setting(), shape, arguments.steps, arguments.threads)
    print(report.table(rows))
    report.write(arguments.json, rows, steps=arguments.steps)
    if arguments.plot:
        Path(arguments.plot).write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
