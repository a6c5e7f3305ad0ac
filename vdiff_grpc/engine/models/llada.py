"""LLaDA-8B, LLaDA-1.5 and whatever shares their layout: Llama's block with full attention.

Source: arXiv:2502.09992; the published config.json and weight names of GSAI-ML/LLaDA-8B-Base.
"""

from __future__ import annotations

from typing import Any

from vdiff_grpc.engine.models.family import FULL_ATTENTION, Config, Family
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

# What Llama's block cannot express; each must have this value if the config names it.
_REQUIRED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
}


def _to_config(config: Config) -> dict[str, Any]:
    for key, expected in _REQUIRED.items():
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"{config.path}: {key} is {config[key]!r}; the llada family is served with "
                f"{expected!r} only"
            )
    return {
        "vocab_size": config.integer("embedding_size", _vocab_size(config)),
        "hidden_size": config.integer("d_model"),
        "intermediate_size": config.get("mlp_hidden_size")
        or config.integer("mlp_ratio") * config.integer("d_model"),
        "num_hidden_layers": config.integer("n_layers"),
        "num_attention_heads": config.integer("n_heads"),
        "num_key_value_heads": config.integer("n_kv_heads", config.integer("n_heads")),
        "head_dim": config.integer("d_model") // config.integer("n_heads"),
        "hidden_act": "silu",
        "max_position_embeddings": _max_positions(config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "tie_word_embeddings": config.get("weight_tying", False),
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _vocab_size(config: Config) -> int:
    return config.integer("vocab_size")


def _max_positions(config: Config) -> int:
    return config.integer("max_sequence_length")


def _mask_token_id(config: Config) -> int:
    return config.integer("mask_token_id")


_BLOCK = r"model\.transformer\.blocks\.(\d+)\."

FAMILY = Family(
    name="llada",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    transformers_class="LlamaForCausalLM",
    transformers_config="LlamaConfig",
    to_config=_to_config,
    key_mapping={
        _BLOCK + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
        _BLOCK + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
        _BLOCK + r"q_proj\.": r"model.layers.\1.self_attn.q_proj.",
        _BLOCK + r"k_proj\.": r"model.layers.\1.self_attn.k_proj.",
        _BLOCK + r"v_proj\.": r"model.layers.\1.self_attn.v_proj.",
        _BLOCK + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
        _BLOCK + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
        _BLOCK + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
        _BLOCK + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
        r"model\.transformer\.wte\.": "model.embed_tokens.",
        r"model\.transformer\.ln_f\.": "model.norm.",
        r"model\.transformer\.ff_out\.": "lm_head.",
    },
    attention=AttentionPattern.FULL,
    vocab_size=_vocab_size,
    max_positions=_max_positions,
    mask_token_id=_mask_token_id,
    supports_infill=True,
    strategies=FULL_ATTENTION,
    end_token_names=("<|eot_id|>",),
)
