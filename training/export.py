"""Owns the shipped folder: writes a checkpoint in its published layout, file by file at once."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.layout import llada_config, llama_config, load_published, published
from training.model import Network, Shape
from training.tokenizer import (
    ASSISTANT_ID,
    BOS_ID,
    EOS_ID,
    EOT_ID,
    MASK_ID,
    USER_ID,
    save_tokenizer,
)

LOG_POINTS = 300


def read_checkpoint(path: Path) -> tuple[Network, dict[str, object]]:
    """The network of a training checkpoint, and its log."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    net = Network(Shape(**state["shape"]))
    net.load_state_dict(state["net"])
    log = state["log"]
    every = max(1, len(log) // LOG_POINTS)
    elapsed, step, tokens = state["clock"]
    kept = [list(e.values()) for e in log[::every]]
    return net, {
        "columns": list(log[0]) if log else [],
        "total": {"seconds": round(elapsed), "steps": step, "tokens": tokens},
        "rows": kept,
    }


def generation_config(shape: Shape, temperature: float) -> dict[str, object]:
    """generation_config.json."""
    out: dict[str, object] = {
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID, EOT_ID],
        "pad_token_id": EOS_ID,
        "do_sample": True,
        "temperature": temperature,
        "suppress_tokens": [BOS_ID, USER_ID, ASSISTANT_ID],
    }
    if not shape.causal:
        out["mask_token_id"] = MASK_ID
    return out


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """One JSON file with a line end."""
    path.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def log_text(log: dict[str, object]) -> str:
    """The log with one row a line."""
    rows = log["rows"]
    assert isinstance(rows, list)
    head = {k: v for k, v in log.items() if k != "rows"}
    lines = ",\n".join(json.dumps(r) for r in rows)
    return json.dumps(head)[:-1] + ',\n"rows": [\n' + lines + "\n]}\n"


def export(checkpoint: Path, tokenizer: Path, out: Path, temperature: float, log_name: str) -> None:
    """Write everything beside the target, then move it there file by file."""
    net, log = read_checkpoint(checkpoint)
    shape = net.shape
    out.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".export-", dir=out.parent))
    try:
        save_file(published(net), part / "model.safetensors", metadata={"format": "pt"})
        write_json(
            part / "config.json", llama_config(shape) if shape.causal else llada_config(shape)
        )
        write_json(part / "generation_config.json", generation_config(shape, temperature))
        save_tokenizer(Tokenizer.from_file(str(tokenizer)), part)
        (part / log_name).write_text(log_text(log), encoding="utf-8")
        for file in sorted(part.iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(part)


def check(folder: Path) -> float:
    """Largest difference of logits from those of transformers' Llama on the same weights."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    net = load_published(folder)
    shape = net.shape
    config = llama_config(shape)
    for key in ("architectures", "model_type", "dtype"):
        config.pop(key)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
    twin = Network(replace(shape, causal=True))
    twin.load_state_dict(net.state_dict())
    missing = model.load_state_dict(published(twin), strict=False).missing_keys
    assert missing == ["lm_head.weight"] or not missing, missing
    model.tie_weights()
    ids = torch.randint(6, shape.vocab, (2, 40))
    mask = torch.zeros(2, 1, 40, 40)
    if shape.causal:
        mask = mask + torch.full((40, 40), float("-inf")).triu(1)
    with torch.no_grad():
        there = model(ids, attention_mask=mask).logits
        gap = float((there - net(ids)).abs().max())
    assert len(load_file(folder / "model.safetensors")) == 2 + 9 * shape.layers
    return gap


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--temperature", type=float, default=0.7)
    p.add_argument("--log", default="training_log.json", help="name of the log in the folder")
    p.add_argument("--check", action="store_true", help="compare logits with transformers' Llama")
    args = p.parse_args()
    export(args.checkpoint, args.tokenizer, args.out, args.temperature, args.log)
    if args.check:
        print("largest difference of logits from transformers' Llama:", check(args.out))


if __name__ == "__main__":
    main()
