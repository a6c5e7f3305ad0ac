"""Checkpoints of LLaDA's layout with random weights, in any shape. They say nothing of quality."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a network. vocab: its last id is the mask."""

    vocab: int
    hidden: int = 128
    intermediate: int = 384
    layers: int = 2
    heads: int = 4
    positions: int = 8192

    @property
    def head_flops(self) -> int:
        """Of one position's logits."""
        return 2 * self.hidden * self.vocab

    @property
    def token_flops(self) -> int:
        """Of one packed token in the linear layers."""
        return 2 * self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    def attention_flops(self, length: int) -> int:
        """Of one row: every token with every token."""
        return 4 * self.layers * self.hidden * length**2


def write(folder: Path, shape: Shape) -> Path:
    """A checkpoint without a tokenizer. Returns the folder."""
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "vocab_size": shape.vocab,
        "embedding_size": shape.vocab,
        "d_model": shape.hidden,
        "mlp_hidden_size": shape.intermediate,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "max_sequence_length": shape.positions,
        "mask_token_id": shape.vocab - 1,
        "eos_token_id": 0,
        "rope_theta": 500000.0,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    square = (shape.hidden, shape.hidden)
    wide = (shape.intermediate, shape.hidden)
    of_layer = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), square),
        **dict.fromkeys(("ff_proj", "up_proj"), wide),
        "ff_out": wide[::-1],
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (shape.vocab, shape.hidden),
        "ff_out": (shape.vocab, shape.hidden),
    }
    for layer in range(shape.layers):
        shapes |= {f"blocks.{layer}.{name}": size for name, size in of_layer.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(*s, generator=generator) * 0.02 for name, s in shapes.items()}
    norms = [f"blocks.{i}.{name}" for i in range(shape.layers) for name in ("attn_norm", "ff_norm")]
    weights |= {name: torch.ones(shape.hidden) for name in [*norms, "ln_f"]}
    save_file(
        {f"model.transformer.{name}.weight": values for name, values in weights.items()},
        folder / "model.safetensors",
    )
    return folder
