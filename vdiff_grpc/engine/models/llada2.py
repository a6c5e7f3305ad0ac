"""LLaDA2.0 and 2.1 (mini, flash): GLM-4's mixture of experts, block-causal.

Sigmoid routing limited to groups, with a correction bias and a shared expert; the first layers
dense; rotary positions on a part of each head; queries, keys and values in one tensor of the file.
2.0 and 2.1 differ in how they are decoded (`dynamic_threshold`, `editing`), not in the network,
and their published configs do not tell them apart.

Source: arXiv:2512.15745, 2602.08676; ZHZisZZ/dllm
dllm/pipelines/llada2/models/modeling_llada2_moe.py and llada21/... ca17675.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from vdiff_grpc.engine.models.family import BLOCK_CAUSAL, Config, Family
from vdiff_grpc.engine.models.llada_moe import (
    check_required,
    mask_token_id,
    max_positions,
    vocab_size,
)
from vdiff_grpc.engine.strategies import DynamicThreshold
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

_BLOCK_LENGTH = 32  # the published config does not name it; `generate` has it

# What GLM-4's mixture cannot express; each must have one of these values if the config names it.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (True,),
    "norm_head": (False,),
    "norm_softmax": (False,),
    "norm_topk_prob": (True,),
    "rope_scaling": (None,),
    "score_function": ("sigmoid",),
    "use_bias": (False,),
    "use_rmsnorm": (True,),
    "use_sliding_window": (False,),
    "using_split_qkv_in_self_attention": (False,),
}


def _to_config(config: Config) -> dict[str, Any]:
    check_required(config, "llada2", _REQUIRED)
    heads = config.integer("num_attention_heads")
    top_k = config.integer("num_experts_per_tok")
    shared = config.integer("num_shared_experts", 0)
    if shared < 1:
        raise CheckpointError(
            f"{config.path}: num_shared_experts is {shared}; the llada2 family has at least 1"
        )
    return {
        "vocab_size": vocab_size(config),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("intermediate_size"),
        "moe_intermediate_size": config.integer("moe_intermediate_size"),
        "num_hidden_layers": config.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("num_key_value_heads", heads) or heads,
        "head_dim": config.integer("head_dim", config.integer("hidden_size") // heads),
        "hidden_act": "silu",
        "max_position_embeddings": max_positions(config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config["rope_theta"],
            "partial_rotary_factor": config.get("partial_rotary_factor", 0.5),
        },
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "attention_bias": config.get("use_qkv_bias", False),
        "use_qk_norm": config.get("use_qk_norm", True),
        "n_routed_experts": config.integer("num_experts"),
        "n_shared_experts": shared,
        "num_experts_per_tok": top_k,
        "n_group": config.integer("n_group"),
        "topk_group": config.integer("topk_group"),
        "norm_topk_prob": top_k > 1,
        "routed_scaling_factor": config["routed_scaling_factor"],
        "first_k_dense_replace": config.integer("first_k_dense_replace", 0),
        "num_mtp_layers": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _block_length(config: Config) -> int:
    return config.integer("block_size", config.integer("block_length", _BLOCK_LENGTH))


@cache
def _register_split() -> None:
    """Tells transformers to part the fused projection.

    Added to what it does for GLM-4's mixture, none of whose files has a tensor of this name.
    """
    from transformers import conversion_mapping
    from transformers.core_model_loading import Split, WeightConverter

    known = conversion_mapping.get_checkpoint_conversion_mapping("glm4_moe") or []
    split = WeightConverter(
        "attention.query_key_value",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[Split(dim=0)],
    )
    conversion_mapping.register_checkpoint_conversion_mapping(
        "glm4_moe", [split, *known], overwrite=True
    )


FAMILY = Family(
    name="llada2",
    unsplit="queries, keys and values are one tensor of its files",
    model_types=("llada2_moe", "llada21_moe"),
    architectures=("LLaDA2MoeModelLM",),
    transformers_class="Glm4MoeForCausalLM",
    transformers_config="Glm4MoeConfig",
    to_config=_to_config,
    key_mapping={
        r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
        r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
        r"\.attention\.dense\.": ".self_attn.o_proj.",
        r"\.mlp\.gate\.expert_bias": ".mlp.gate.e_score_correction_bias",
        r"model\.word_embeddings\.": "model.embed_tokens.",
    },
    attention=AttentionPattern.BLOCK_CAUSAL,
    vocab_size=vocab_size,
    max_positions=max_positions,
    mask_token_id=mask_token_id,
    supports_infill=False,
    strategies=BLOCK_CAUSAL,
    default_strategy=DynamicThreshold(threshold=0.95),
    block_length=_block_length,
    end_token_names=("<|role_end|>",),
    prepare=_register_split,
    mixture_of_experts=True,
)
