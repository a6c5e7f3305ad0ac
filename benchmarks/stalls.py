"""What a long canvas, or a long prompt, does to a short row beside it: gaps between its steps.

    python -m benchmarks.stalls [--long 4096 | --prompt 4096] [--json FILE]

With full attention a long canvas is computed whole, with and without turns (target_step_tokens).
The embedded model with room for more positions: its answers mean nothing, its times do. Where
attention looks back only a prompt is read in pages, so many tokens a step
(max_prompt_step_tokens): a random causal model, which writes one token a step. The settings run in
turn, a round each, and ratios are medians over the rounds.
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
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import report
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

_PROMPT = 16
_LONG, _SHORT = 1, 2


def main() -> None:
    arguments = _arguments()
    print(report.machine(), "\n")
    if arguments.prompt:
        rows = measure_prompts(arguments.prompt, arguments.pages, arguments.rounds)
        print(report.table(rows))
        report.write(arguments.json, rows, prompt=arguments.prompt)
        return
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


def measure_prompts(
    prompt: int, limits: Sequence[int], num_rounds: int, width: int = 256, layers: int = 4
) -> list[report.Row]:
    """A prompt that comes while a short row writes, read at once (limit 0) or in pages.

    Gaps are over those with the whole prompt in one step.
    """
    with tempfile.TemporaryDirectory() as folder:
        _causal_model(Path(folder), prompt + 64, width, layers)
        engines = {
            limit: Engine(
                EngineConfig(
                    folder,
                    device="cpu",
                    max_step_tokens=4 * prompt,
                    max_prompt_step_tokens=limit or 2 * prompt,
                    share_prompts=False,
                )
            )
            for limit in (0, *limits)
        }
        for engine in engines.values():
            engine.warm_up()
        runs = {limit: list[_Read]() for limit in engines}
        for _ in range(num_rounds):
            for limit, engine in engines.items():
                runs[limit].append(_Read(engine, prompt))
    rows = []
    for limit, found in runs.items():

        def ratio(name: str, found: list[_Read] = found) -> float:
            pairs = zip(found, runs[0], strict=True)
            return float(statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs))

        rows.append(
            {
                "tokens a step": limit or "all",
                "steps to read": found[0].num_reading,
                "alone ms": statistics.median(one.alone_ms for one in found),
                "longest gap ms": statistics.median(one.longest_ms for one in found),
                "longest gap": ratio("longest_ms"),
                "first token of the prompt": ratio("first_ms"),
            }
        )
    return rows


class _Read:
    """One run: a short row's gaps while a long prompt is read beside it."""

    def __init__(self, engine: Engine, prompt: int) -> None:
        def add(key: int, given: int, new: int) -> None:
            ids = tuple(2 + (7 * i + key) % 900 for i in range(given))
            params = RequestParams(max_new_tokens=new, ignore_eos=True, seed=key)
            request = Request(TokensPrompt(ids), params)
            engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))

        def step_ms() -> float:
            begin = time.perf_counter()
            engine.step()
            return (time.perf_counter() - begin) * 1e3

        add(_SHORT, _PROMPT, prompt // 16)
        engine.step()
        self.alone_ms = float(np.median([step_ms() for _ in range(8)]))
        add(_LONG, prompt, 2)
        gaps = [step_ms()]
        long = next(row for row in engine.scheduler.running if row.key == _LONG)
        while not long.step:
            gaps.append(step_ms())
        self.num_reading, self.longest_ms, self.first_ms = len(gaps), max(gaps), sum(gaps)
        for key in (_SHORT, _LONG):
            engine.abort(key)


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


def _causal_model(folder: Path, positions: int, width: int, layers: int) -> None:
    """A random one, of so many positions."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long canvas")
    parser.add_argument("--short", type=int, default=64, help="tokens of a short one")
    parser.add_argument("--steps", type=int, default=24, help="steps of the short one")
    parser.add_argument("--targets", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a long prompt, instead")
    parser.add_argument("--pages", type=int, nargs="+", default=[1024, 256], help="tokens a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="write the figures here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
