"""How fast the engine is on this machine: tokens/s, forward passes, and what a step costs.

    python -m benchmarks.quick [--model PATH] [--tokens 64] [--json FILE]

A step is compared with the bare forward pass of the very same packed rows and head rows, both
in turn in one run; the ratio of their medians is what scheduling, packing, decoding and
committing add. Times in milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from importlib import resources
from pathlib import Path

import torch

from benchmarks import report
from vdiff_grpc.engine.decoding.registry import rule_of
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.packing import pack
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, Strategy
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams, TokensPrompt
from vdiff_grpc.engine.validation import resolve

_PROMPT = TokensPrompt(tuple(range(100, 116)))


def main() -> None:
    arguments = _arguments()
    engine = Engine(
        EngineConfig(arguments.model, device=arguments.device, threads=arguments.threads)
    )
    engine.warm_up()
    print(f"{arguments.model}: {report.machine()}\n")
    rows = []
    for num_rows in arguments.rows:
        settings: list[tuple[str, Strategy, float]] = [
            ("fixed", FixedSchedule(), 0.0),
            ("fixed", FixedSchedule(), 1.0),
            ("threshold 0.9", ConfidenceThreshold(0.9), 0.0),
        ]
        for name, strategy, temperature in settings:
            params = RequestParams(
                max_new_tokens=arguments.tokens,
                temperature=temperature,
                strategy=strategy,
                ignore_eos=True,
                seed=0,
            )
            rows.append(
                {"strategy": name, "temperature": temperature, **measure(engine, params, num_rows)}
            )
    print(report.table(rows))
    report.write(arguments.json, rows, tokens=arguments.tokens, model=Path(arguments.model).name)


def measure(engine: Engine, params: RequestParams, num_rows: int) -> report.Row:
    """`num_rows` equal requests at once, to their end."""
    before = engine.statistics
    for key in range(num_rows):
        request = Request(_PROMPT, dataclasses.replace(params, seed=key))
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))
    step_ms: list[float] = []
    bare_ms: list[float] = []
    while engine.has_work:
        if engine.scheduler.running:
            bare_ms.append(_bare_forward_ms(engine))
        begin = time.perf_counter()
        engine.step()
        step_ms.append((time.perf_counter() - begin) * 1e3)
    after = engine.statistics
    tokens = after.committed_tokens - before.committed_tokens
    forwards = after.forward_passes - before.forward_passes
    step, bare = statistics.median(step_ms[1:]), statistics.median(bare_ms)
    return {
        "rows": num_rows,
        "tokens": tokens,
        "forwards": forwards,
        "tokens/forward": tokens / forwards,
        "steps": after.engine_steps - before.engine_steps,
        "tokens/s": tokens / (sum(step_ms) / 1e3),
        "step ms": step,
        "bare ms": bare,
        "step/bare": step / bare,
    }


def _bare_forward_ms(engine: Engine) -> float:
    """Body and head of the rows that run now, on tensors that already lie on the device."""
    model = engine.model
    rows = engine.scheduler.running
    packed = pack(rows, [rule_of(row).plan(row) for row in rows], 0, engine.runner.fill).tokens
    tensors = [
        torch.from_numpy(values).to(model.device)
        for values in (packed.token_ids, packed.position_ids, packed.head)
    ]
    _wait(model.device)
    begin = time.perf_counter()
    model.logits(tensors[0], tensors[1], packed.layout, tensors[2])
    _wait(model.device)
    return (time.perf_counter() - begin) * 1e3


def _wait(device: object) -> None:
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    demo = str(resources.files("vdiff_grpc") / "assets" / "demo")
    parser.add_argument("--model", default=demo, help="checkpoint folder; the embedded model")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="requests at once")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--json", default="", help="write the figures here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
