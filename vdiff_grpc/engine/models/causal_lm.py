"""Causal language models of transformers' own classes: left to right, one token a step.

Which classes can be served is found out when the weights load (see probe.py): the table that
transformers keeps of them needs torch.
"""

from __future__ import annotations

from vdiff_grpc.engine.models.family import CAUSAL, Config, Family
from vdiff_grpc.engine.models.masked_lm import native_config, vocab_size
from vdiff_grpc.engine.strategies import LeftToRight
from vdiff_grpc.engine.types import AttentionPattern

NAME = "causal_lm"

_ENDINGS = ("ForCausalLM", "LMHeadModel")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")

# Old checkpoints hold buffers that are computed today.
_IGNORED_KEYS = (
    r"rotary_emb\.inv_freq$",
    r"\.attn\.(masked_)?bias$",
    r"\.attention\.(masked_)?bias$",
)


def is_causal(architecture: str) -> bool:
    """Whether a class is a causal language model, by its name."""
    return architecture.endswith(_ENDINGS)


def family_of(architecture: str) -> Family:
    """The family of one class."""
    return Family(
        name=NAME,
        model_types=(),
        architectures=(architecture,),
        transformers_class=architecture,
        transformers_config="",  # the one that transformers keeps for the model_type
        to_config=native_config,
        key_mapping={},
        attention=AttentionPattern.CAUSAL,
        vocab_size=vocab_size,
        max_positions=_max_positions,
        mask_token_id=_no_mask,
        supports_infill=False,
        strategies=CAUSAL,
        default_strategy=LeftToRight(),
        shift=1,
        ignored_keys=_IGNORED_KEYS,
    )


def _no_mask(_: Config) -> None:
    return None


def _max_positions(config: Config) -> int:
    key = next((key for key in _POSITIONS if key in config), _POSITIONS[0])
    return config.integer(key)
