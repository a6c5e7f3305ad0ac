"""How much memory of a GPU a checkpoint and its limits take, by arithmetic. Reads config.json only.

python -m docs.memory CHECKPOINT [--max-step-tokens N] [--max-running-rows N] [--cache-tokens N]
        [--block-length N]

docs/gpu.md explains the terms. tests/docs/test_gpu.py holds them to what a step allocates on a CPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from vdiff_grpc.engine.decoding.stages import TILE_BYTES
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.loader import _native_config
from vdiff_grpc.engine.models.registry import describe, find_family
from vdiff_grpc.engine.types import EngineConfig
from vdiff_grpc.engine.validation import limits_for

# float32 copies of [head rows, vocabulary] at a step's peak; half of one is the network's own in
# bfloat16. klass keeps one from step to step.
COPIES = {"all but klass": 1.5, "klass": 3.1}
TILE_COPIES = 8  # of a tile of the decoding stages, at their peak: top_p or top_k
_HALF, _FLOAT = 2, 4
_DEFAULTS = EngineConfig("")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the sums are made of. kept_bytes: keys and values of one token.

    cache_tokens: that are kept when nothing is said.
    """

    parameters: int
    hidden: int
    intermediate: int
    vocab: int
    kept_bytes: int
    cache_tokens: int

    @property
    def weight_bytes(self) -> int:
        return self.parameters * _HALF

    @property
    def token_bytes(self) -> int:
        """Of one packed token, in bfloat16, where it is most: in the MLP, or in attention."""
        return max(8 * self.hidden + 6 * self.intermediate, 20 * self.hidden)

    def logits_bytes(self, head_rows: int, copies: float = 1) -> float:
        return head_rows * self.vocab * _FLOAT * copies


def sizes_of(folder: Path) -> Sizes:
    """Raises CheckpointError."""
    config = Config.read(folder)
    family = find_family(config)
    native = _native_config(config, family)
    with torch.device("meta"):
        network = getattr(transformers, family.transformers_class)(native)
    heads = native.num_attention_heads
    width = getattr(native, "head_dim", None) or native.hidden_size // heads
    heads = getattr(native, "num_key_value_heads", None) or heads
    kept = 2 * native.num_hidden_layers * heads * width * _HALF
    return Sizes(
        sum(p.numel() for p in network.parameters()),  # shared ones come once
        native.hidden_size,
        native.intermediate_size,
        network.get_input_embeddings().num_embeddings,
        kept,
        limits_for(_DEFAULTS, describe(str(folder))).max_cache_tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, default in (
        ("max-step-tokens", _DEFAULTS.max_step_tokens),
        ("max-running-rows", _DEFAULTS.max_running_rows),
        ("cache-tokens", 0),
        ("block-length", _DEFAULTS.default_block_length),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    told = parser.parse_args()
    sizes, tokens = sizes_of(told.checkpoint), told.max_step_tokens
    kept = told.cache_tokens or sizes.cache_tokens
    usual = min(told.max_running_rows * told.block_length, tokens)
    lines = [
        (f"weights, {sizes.parameters / 1e9:.2f} billion in bfloat16", sizes.weight_bytes),
        (f"activations of {tokens} packed tokens", tokens * sizes.token_bytes),
        (f"keys and values of {kept} kept tokens", kept * sizes.kept_bytes),
        ("tiles of the decoding stages", TILE_COPIES * TILE_BYTES),
        *(
            (f"logits of {rows} positions, {name}", sizes.logits_bytes(rows, copies))
            for rows in (usual, tokens)
            for name, copies in COPIES.items()
        ),
    ]
    for what, num_bytes in lines:
        print(f"{num_bytes / 1e9:8.2f} GB  {what}")


if __name__ == "__main__":
    main()
