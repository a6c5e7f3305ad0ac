"""A step of LLaDA-8B's shape over its floor, and tokens/s beside Fast-dLLM's own loop.

    python -m benchmarks.gpu [--fast-dllm PATH] [--json FILE]      on a GPU
    python -m benchmarks.gpu --tiny                                anywhere

Weights are random and made on the device, in no file. The floor of a step is the longer of
FLOPs / matrix rate and bytes / bandwidth; both ceilings are measured first, in the same run.
--fast-dllm: a checkout of NVlabs/Fast-dLLM (24cc59e), whose model runs on the very same weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import report
from vdiff_grpc.engine import attention
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.kernels.registry import BACKENDS, Place, refusal
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.loader import (
    LoadedModel,
    _native_config,
    _renamed,
    choose_device,
    choose_dtype,
)
from vdiff_grpc.engine.models.registry import find_family
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

_BLOCK = 32
_TINY = {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 96, "vocab_size": 997}
_LLADA = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the sums are made of. num_bytes: of one number."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int
    num_bytes: int

    @property
    def layer_weights(self) -> int:
        """Of matrices: four of attention, three of the MLP."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.intermediate

    def flops(self, lengths: Rows[int], head_rows: int) -> int:
        """Of one step with full attention: a product of n numbers counts 2n."""
        body = 2 * self.layers * self.layer_weights * sum(lengths)
        scores = 4 * self.layers * self.hidden * sum(n * n for n in lengths)
        return body + scores + 2 * head_rows * self.hidden * self.vocab

    def step_bytes(self, head_rows: int) -> int:
        """What cannot but move: every weight of a matrix in, the logits out."""
        weights = self.layers * self.layer_weights + self.hidden * self.vocab
        return self.num_bytes * (weights + head_rows * self.vocab)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of the device, measured: FLOPs and bytes in a second."""

    flops_per_s: float
    bytes_per_s: float

    def floor_s(self, flops: int, num_bytes: int) -> float:
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


def main() -> None:
    arguments = _arguments()
    device = choose_device(arguments.device)
    dtype = choose_dtype("auto", device)
    print(f"{report.machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), tiny=arguments.tiny)
        model = build(Path(folder), device, dtype)
        shape = Shape(
            config["d_model"],
            config["mlp_hidden_size"],
            config["n_layers"],
            config["n_heads"],
            config["vocab_size"],
            dtype.itemsize,
        )
        ceilings = measure_ceilings(device, dtype, 256 if arguments.tiny else 8192)
        print(f"{ceilings.flops_per_s / 1e12:.3g} TFLOP/s, {ceilings.bytes_per_s / 1e9:.4g} GB/s\n")
        cases = [(1, 64), (2, 64)] if arguments.tiny else arguments.cases
        rows = measure_steps(model, shape, ceilings, cases, arguments.rounds)
        print(report.table(rows))
        loops, skipped = measure_loops(Path(folder), model, config, arguments)
        print(f"\n{report.table(loops)}")
        if skipped:
            print(f"Fast-dLLM: {skipped}")
    ceiling = {"flops/s": ceilings.flops_per_s, "bytes/s": ceilings.bytes_per_s}
    report.write(arguments.json, rows, ceilings=ceiling, loops=loops, skipped=skipped)


def write_config(folder: Path, *, tiny: bool) -> dict[str, Any]:
    """LLaDA-8B's config.json, or a tiny one's; no weights."""
    sizes = _TINY if tiny else _LLADA
    config = {
        **sizes,
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "n_kv_heads": sizes["n_heads"],
        "embedding_size": sizes["vocab_size"],
        "max_sequence_length": 4096,
        "rope": True,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "mask_token_id": sizes["vocab_size"] - 1,
        "eos_token_id": sizes["vocab_size"] - 2,
        "pad_token_id": sizes["vocab_size"] - 2,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
        "alibi": False,
        "weight_tying": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return config


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The network that config.json describes, with random weights, on the device."""
    config = Config.read(folder)
    family = find_family(config)
    attention.register()
    torch.manual_seed(0)
    with device:
        network = getattr(transformers, family.transformers_class)._from_config(
            _native_config(config, family), attn_implementation=attention.BACKEND, dtype=dtype
        )
    return LoadedModel(network.eval().requires_grad_(False), device, dtype)


def measure_ceilings(device: torch.device, dtype: torch.dtype, width: int) -> Ceilings:
    """Of a square matrix product, and of a copy: read once, written once."""
    a = torch.randn(width, width, device=device).to(dtype)
    product_s = median_s(device, [lambda: a @ a], 10)[0]
    big = torch.empty(16 * width * width, device=device, dtype=torch.uint8)
    other = torch.empty_like(big)
    copy_s = median_s(device, [lambda: other.copy_(big)], 10)[0]
    return Ceilings(2 * width**3 / product_s, 2 * big.numel() / copy_s)


def measure_steps(
    model: LoadedModel,
    shape: Shape,
    ceilings: Ceilings,
    cases: Rows[tuple[int, int]],
    rounds: int,
) -> list[report.Row]:
    """The bare step of so many rows of such a canvas, by every backend that works, in turn."""
    width = shape.hidden // shape.heads
    place = Place(model.device, model.dtype, shape.heads, shape.heads, width)
    reasons = {name: refusal(name, place) for name in BACKENDS if name != "sdpa"}
    for name, reason in reasons.items():
        if reason:
            print(f"without {name}: {reason}")
    names = [name for name in BACKENDS if not reasons.get(name)]
    found = []
    for num_rows, canvas in cases:
        ids = torch.randint(shape.vocab, (num_rows * canvas,), device=model.device)
        positions = torch.arange(canvas, device=model.device).repeat(num_rows)
        block = torch.arange(_BLOCK, device=model.device)
        head = torch.cat([row * canvas + block for row in range(num_rows)])

        def step_by(name: str, tensors: Any, lengths: list[int]) -> Callable[[], object]:
            ids, positions, head = tensors
            return lambda: model.logits(  # a layout lives for one step
                ids,
                positions,
                AttentionLayout.of_lengths(lengths, [FULL] * len(lengths), backends=(name,)),
                head,
            )

        lengths = [canvas] * num_rows
        steps = [step_by(name, (ids, positions, head), lengths) for name in names]
        floor_s = ceilings.floor_s(shape.flops(lengths, len(head)), shape.step_bytes(len(head)))
        found += [
            {
                "rows": num_rows,
                "canvas": canvas,
                "attention": name,
                "step ms": step_s * 1e3,
                "floor ms": floor_s * 1e3,
                "step/floor": step_s / floor_s,
            }
            for name, step_s in zip(names, median_s(model.device, steps, rounds), strict=True)
        ]
    return found


def measure_loops(
    folder: Path, model: LoadedModel, config: dict[str, Any], arguments: argparse.Namespace
) -> tuple[list[report.Row], str]:
    """One request after the other, one token a step, ours and theirs in turn; why not theirs."""
    prompt, new = list(range(16)), 32 if arguments.tiny else 128
    backend = arguments.attention
    engine = Engine(EngineConfig(str(folder), attention=backend), model=model)
    params = RequestParams(
        max_new_tokens=new,
        block_length=_BLOCK,
        steps=new,
        strategy=FixedSchedule(),
        ignore_eos=True,
        seed=0,
    )

    def ours() -> int:
        before = engine.statistics.forward_passes
        request = Request(TokensPrompt(tuple(prompt)), params)
        engine.add(0, resolve(request, engine.info, engine.limits, engine.tokenizer))
        while engine.has_work:
            engine.step()
        return engine.statistics.forward_passes - before

    runs: dict[str, Callable[[], int]] = {"vdiff-grpc": ours}
    skipped = "" if arguments.fast_dllm else "no checkout is given (--fast-dllm PATH)"
    if arguments.fast_dllm:
        try:
            runs["Fast-dLLM"] = fast_dllm(Path(arguments.fast_dllm), model, config, prompt, new)
        except (ImportError, AttributeError, TypeError, RuntimeError) as error:
            skipped = f"its code does not run here: {type(error).__name__}: {error}"
    forwards = [run() for run in runs.values()]  # once to warm up
    seconds = median_s(model.device, list(runs.values()), arguments.rounds)
    rows: list[report.Row] = [
        {"loop": name, "tokens": new, "forwards": count, "tokens/s": new / taken}
        for name, count, taken in zip(runs, forwards, seconds, strict=True)
    ]
    return rows, skipped


def fast_dllm(
    checkout: Path, model: LoadedModel, config: dict[str, Any], prompt: list[int], new: int
) -> Callable[[], int]:
    """Its generate() on its own model class, whose weights are our tensors. No cache, as ours."""
    sys.path.insert(0, str(checkout / "llada"))
    try:
        theirs = importlib.import_module("model.modeling_llada")
        generate = importlib.import_module("generate").generate
    finally:
        sys.path.pop(0)
    settings = theirs.LLaDAConfig(**config)
    settings.use_cache = False  # transformers 5 drops it
    sizes = theirs.create_model_config_from_pretrained_config(settings)
    sizes.init_device = "meta"
    network = theirs.LLaDAModelLM(settings, theirs.LLaDAModel(sizes, init_params=False))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        family = find_family(Config.read(Path(folder)))
    ours = model.network.state_dict()
    weights = {name: ours[_renamed(name, family)] for name in network.state_dict()}
    network.load_state_dict(weights, assign=True)
    network.eval()
    ids = torch.tensor([prompt], device=model.device)
    mask_id = config["mask_token_id"]

    def run() -> int:
        _, forwards = generate(
            network, ids, steps=new, gen_length=new, block_length=_BLOCK, mask_id=mask_id
        )
        return int(forwards)

    run()  # what does not run is told now
    return run


def median_s(device: torch.device, calls: Rows[Callable[[], object]], rounds: int) -> list[float]:
    """Of each, all in turn, after one round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            _wait(device)
            begin = time.perf_counter()
            call()
            _wait(device)
            if number:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _case(text: str) -> tuple[int, int]:
    rows, _, canvas = text.partition("x")
    return int(rows), int(canvas)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument(
        "--cases",
        type=_case,
        nargs="+",
        metavar="ROWSxCANVAS",
        default=[(1, 256), (4, 256), (16, 256), (64, 256), (1, 4096), (4, 4096)],
    )
    parser.add_argument("--rounds", type=int, default=10, help="of which the median is told")
    parser.add_argument("--attention", default="auto", help="of the engine beside Fast-dLLM")
    parser.add_argument("--fast-dllm", default="", metavar="PATH", help="a checkout of it")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--json", default="", help="write the figures here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
