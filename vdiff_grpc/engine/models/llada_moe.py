"""LLaDA-MoE: Qwen3's mixture of experts with full attention.

Softmax routing whose weights are not made to sum to one, norms of queries and keys per head. The
keys are Qwen3-MoE's own: experts lie apart in the file and are merged by transformers.

Source: arXiv:2509.24389; ZHZisZZ/dllm dllm/pipelines/llada/models/modeling_lladamoe.py ca17675.
"""

from __future__ import annotations

from typing import Any

from vdiff_grpc.engine.models.family import FULL_ATTENTION, Config, Family
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

_MASK_TOKEN_ID = 156895  # the published config does not name it

# What Qwen3-MoE cannot express; each must have one of these values if the config names it.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "clip_qkv": (None,),
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (None, False),
    "moe_router_score_function": (None, "softmax"),
    "partial_rotary_factor": (None, 1),
    "qk_layernorm": (True,),
    "rope_scaling": (None,),
    "routed_scaling_factor": (None, 1),
    "shared_expert_intermediate_size": (None, 0),
}


def check_required(config: Config, family: str, required: dict[str, tuple[object, ...]], /) -> None:
    """Raises CheckpointError for a key whose value is none of those that are served."""
    for key, served in required.items():
        if config.get(key, served[0]) not in served:
            values = " or ".join(repr(value) for value in served)
            raise CheckpointError(
                f"{config.path}: {key} is {config[key]!r}; the {family} family is served with "
                f"{values} only"
            )


def _to_config(config: Config) -> dict[str, Any]:
    check_required(config, "llada_moe", _REQUIRED)
    heads = config.integer("num_attention_heads")
    sparse = config["moe_layer_freq"]
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("dense_intermediate_size"),
        "moe_intermediate_size": config.integer("expert_intermediate_size"),
        "num_hidden_layers": config.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("num_key_value_heads", heads),
        "head_dim": config.integer("hidden_size") // heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions(config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "attention_bias": config.get("attention_bias", False),
        "num_experts": config.integer("num_experts"),
        "num_experts_per_tok": config.integer("num_experts_per_tok"),
        "norm_topk_prob": False,  # whatever the config says: the modelling code never does
        "mlp_only_layers": [layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def vocab_size(config: Config) -> int:
    return config.integer("vocab_size")


def max_positions(config: Config) -> int:
    return config.integer("max_position_embeddings")


def mask_token_id(config: Config) -> int:
    """By the config's or the tokenizer's word, else that of the published checkpoints."""
    return config.integer("mask_token_id", config.special_ids.get("mask_token", _MASK_TOKEN_ID))


FAMILY = Family(
    name="llada_moe",
    model_types=("lladamoe",),
    architectures=("LLaDAMoEModelLM",),
    transformers_class="Qwen3MoeForCausalLM",
    transformers_config="Qwen3MoeConfig",
    to_config=_to_config,
    key_mapping={},
    attention=AttentionPattern.FULL,
    vocab_size=vocab_size,
    max_positions=max_positions,
    mask_token_id=mask_token_id,
    supports_infill=True,
    strategies=FULL_ATTENTION,
    end_token_names=("<|role_end|>",),
    mixture_of_experts=True,
)
