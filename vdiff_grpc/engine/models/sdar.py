"""SDAR: Qwen3 with attention that is full within a block and causal between blocks.

Source: arXiv:2510.06303; JetAstra/SDAR training/model/SDAR-4B-Chat c2041a8.
"""

from __future__ import annotations

from typing import Any

from vdiff_grpc.engine.models.dream import mask_token_id, max_positions, qwen_config, vocab_size
from vdiff_grpc.engine.models.family import BLOCK_CAUSAL, Config, Family
from vdiff_grpc.engine.strategies import DynamicThreshold
from vdiff_grpc.engine.types import AttentionPattern

_DEFAULT_BLOCK_LENGTH = 4


def _to_config(config: Config) -> dict[str, Any]:
    return {
        **qwen_config(config),
        "head_dim": config.integer("head_dim", 128),
        "attention_bias": config.get("attention_bias", False),
    }


def _block_length(config: Config) -> int:
    return config.integer("block_size", config.integer("block_length", _DEFAULT_BLOCK_LENGTH))


FAMILY = Family(
    name="sdar",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    transformers_class="Qwen3ForCausalLM",
    transformers_config="Qwen3Config",
    to_config=_to_config,
    key_mapping={},
    attention=AttentionPattern.BLOCK_CAUSAL,
    vocab_size=vocab_size,
    max_positions=max_positions,
    mask_token_id=mask_token_id,
    supports_infill=False,
    strategies=BLOCK_CAUSAL,
    default_strategy=DynamicThreshold(),
    block_length=_block_length,
    end_token_names=("<|im_end|>",),
)
