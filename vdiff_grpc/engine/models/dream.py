"""Dream, Dream-Coder, DiffuCoder, DreamOn: Qwen2 with full attention and logits one place to the left.

Source: arXiv:2508.15487; ZHZisZZ/dllm dllm/pipelines/dream/models/modeling_dream.py ca17675. DreamOn:
arXiv:2602.01326; DreamLM/DreamOn demo/quickstart.py, eval/evaluate.py 8a0a549.
"""

from __future__ import annotations

from typing import Any

from vdiff_grpc.engine.models.family import FULL_ATTENTION_SHIFTED, Config, Family
from vdiff_grpc.engine.strategies import DreamSchedule
from vdiff_grpc.engine.types import AttentionPattern, GrowthTokens
from vdiff_grpc.errors import CheckpointError


def qwen_config(config: Config) -> dict[str, Any]:
    """What Qwen2 and Qwen3 share, under transformers' own names."""
    if config.get("use_sliding_window"):
        raise CheckpointError(
            f"{config.path}: use_sliding_window is true; only attention without a window is served"
        )
    scaling = config.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise CheckpointError(f"{config.path}: rope_scaling is {scaling!r}; expected an object")
    rope = dict(scaling or {"rope_type": "default"})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope["rope_theta"] = config["rope_theta"]
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("intermediate_size"),
        "num_hidden_layers": config.integer("num_hidden_layers"),
        "num_attention_heads": config.integer("num_attention_heads"),
        "num_key_value_heads": config.integer(
            "num_key_value_heads", config.integer("num_attention_heads")
        ),
        "hidden_act": config.get("hidden_act", "silu"),
        "max_position_embeddings": config.integer("max_position_embeddings"),
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": rope,
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def vocab_size(config: Config) -> int:
    return config.integer("vocab_size")


def max_positions(config: Config) -> int:
    return config.integer("max_position_embeddings")


def mask_token_id(config: Config) -> int:
    return config.integer("mask_token_id")


def growth(config: Config) -> GrowthTokens | None:
    """DreamOn's tokens: by the config's word, else by their names in the tokenizer.

    The published checkpoint has no token of its own that deletes: its end of text does. A document
    with holes stands between bos and end of text there.
    """
    expand = config.integers("expand_token_id") or config.added_token_ids(("<|expand|>",))
    delete = config.integers("delete_token_id") or config.added_token_ids(("<|delete|>",))
    if not expand and not delete:
        return None
    ends, special = config.integers("eos_token_id"), config.special_ids
    delete = delete or ends
    if not expand or not delete:
        raise CheckpointError(
            f"{config.path}: of the tokens that grow and shrink a hole there is only one: expected "
            "expand_token_id, and delete_token_id or eos_token_id"
        )
    before = [special["bos_token"]] if "bos_token" in special else config.integers("bos_token_id")
    return GrowthTokens(expand[0], delete[0], tuple(before[:1]), tuple(ends[:1]))


FAMILY = Family(
    name="dream",
    model_types=("Dream",),
    architectures=("DreamModel",),
    transformers_class="Qwen2ForCausalLM",
    transformers_config="Qwen2Config",
    to_config=qwen_config,
    key_mapping={},
    attention=AttentionPattern.FULL,
    vocab_size=vocab_size,
    max_positions=max_positions,
    mask_token_id=mask_token_id,
    supports_infill=True,
    strategies=FULL_ATTENTION_SHIFTED,
    default_strategy=DreamSchedule(),
    shift=1,
    end_token_names=("<|im_end|>",),
    growth=growth,
)
