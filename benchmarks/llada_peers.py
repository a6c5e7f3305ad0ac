"""LLaDA's generate.py and dInfer's threshold decoder, asked line by line. Run on its own.

    python -P benchmarks/llada_peers.py CHECKPOINT LLADA DINFER

In a process of its own because the published modelling code needs an older transformers than ours.
A line of JSON on standard input is a question, one on standard output its answer. `do` is
"generate", "threshold" or "bare": the forward passes of both, of `rows` canvases.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel


def main() -> None:
    checkpoint, llada, dinfer = sys.argv[1:4]
    torch.set_num_threads(1)
    # float32 is what the checkpoint holds.
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    model.eval()
    passes: list[None] = []
    model.register_forward_pre_hook(lambda *_: passes.append(None))
    sys.path.insert(0, llada)
    generate = importlib.import_module("generate").generate
    threshold = _threshold(model, Path(dinfer)) if dinfer else None
    print(json.dumps({"transformers": importlib.import_module("transformers").__version__}))
    for line in sys.stdin:
        sys.stdout.flush()
        asked = json.loads(line)
        passes.clear()
        begin = time.perf_counter()
        if asked["do"] == "bare":
            canvas = torch.full((asked["rows"], asked["length"]), asked["id"])
            with torch.inference_mode():
                model(canvas)
            tokens = []
        else:
            prompt = torch.tensor([asked["prompt"]])
            sizes = {"gen_length": asked["new"], "block_length": asked["block"]}
            if asked["do"] == "generate":
                canvas = generate(model, prompt, steps=asked["steps"], temperature=0.0, **sizes)
            else:
                assert threshold is not None
                canvas = threshold.generate(prompt, **sizes)
            tokens = canvas[0, len(asked["prompt"]) :].tolist()
        seconds = time.perf_counter() - begin
        print(json.dumps({"s": seconds, "tokens": tokens, "forwards": len(passes)}), flush=True)


def _threshold(model: Any, dinfer: Path) -> Any:
    """Its blockwise loop without a cache and without early end."""
    # Its own __init__ wants vllm, which nothing here needs.
    package = types.ModuleType("dinfer")
    package.__path__ = [str(dinfer / "python" / "dinfer")]
    sys.modules["dinfer"] = package
    strategies = importlib.import_module("dinfer.decoding.parallel_strategy")
    loops = importlib.import_module("dinfer.decoding.generate_uniform")
    utilities = importlib.import_module("dinfer.decoding.utils")
    return loops.BlockWiseDiffusionLLM(
        model,
        strategies.ThresholdParallelDecoder(0.0, 0.9),
        utilities.BlockIteratorFactory(),
        early_stop=False,
    )


if __name__ == "__main__":
    main()
