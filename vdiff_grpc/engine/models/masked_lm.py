"""Masked language models: BERT, DistilBERT, ALBERT, RoBERTa, XLM-RoBERTa, ModernBERT.

The classes are transformers' own; what differs is what makes logits of hidden states, where
positions begin, and what the tokenizer puts around a text.
Source: arXiv:1810.04805, 1910.01108, 1909.11942, 1907.11692, 1911.02116, 2412.13663.
"""

from __future__ import annotations

from typing import Any

from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.models.family import FULL_ATTENTION, Config, Family
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

# What describes the file, or how somebody else ran the model: none of the network's business.
_NO_PARAMETERS = (
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_return_dict",
)

# What these must be if the config names them.
_REQUIRED = {"is_decoder": False, "position_embedding_type": "absolute"}

_IGNORED_KEYS = (
    r"(^|\.)pooler\.",
    r"^cls\.seq_relationship\.",
    r"^sop_classifier\.",
    r"\.position_ids$",
)


def native_config(config: Config) -> dict[str, Any]:
    """config.json of a class of transformers, as it stands."""
    return {key: value for key, value in config.items() if key not in _NO_PARAMETERS}


def vocab_size(config: Config) -> int:
    return config.integer("vocab_size")


def _to_config(config: Config) -> dict[str, Any]:
    for key, expected in _REQUIRED.items():
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"{config.path}: {key} is {config[key]!r}; a masked language model is served with "
                f"{expected!r} only"
            )
    return native_config(config)


def _max_positions(config: Config) -> int:
    return config.integer("max_position_embeddings")


def _after_padding(config: Config) -> int:
    """RoBERTa counts positions from the padding id on, and gives the first to padding itself."""
    return config.integer("pad_token_id", 1) + 1


def _positions_after_padding(config: Config) -> int:
    return config.integer("max_position_embeddings") - _after_padding(config)


def _mask_token_id(config: Config) -> int:
    found = config.special_ids.get("mask_token", config.get("mask_token_id"))
    if found is None:
        raise CheckpointError(
            f"{config.root}: no mask token: neither the tokenizer's files nor config.json "
            "(mask_token_id) name one"
        )
    return int(found)


def _mask_or_last(config: Config) -> int:
    """fairseq's vocabularies end with the mask; a RoBERTa without a tokenizer has such a one."""
    if "mask_token" in config.special_ids or (config.root / "tokenizer.json").exists():
        return _mask_token_id(config)
    return config.integer("mask_token_id", config.integer("vocab_size") - 1)


def _end_token_ids(config: Config) -> list[int]:
    """The separator. The config's own eos is often a default that means nothing here."""
    if "sep_token" in config.special_ids:
        return [config.special_ids["sep_token"]]
    return config.integers("sep_token_id") or config.integers("eos_token_id")


def _suppressed_ids(config: Config) -> list[int]:
    """What frames or fills a text and is no word of it: [CLS], [PAD], [UNK]."""
    found = [
        config.special_ids[role]
        for role in ("cls_token", "bos_token", "pad_token", "unk_token")
        if role in config.special_ids
    ]
    if not config.special_ids:
        for key in ("cls_token_id", "bos_token_id", "pad_token_id"):
            found += config.integers(key)
    return [i for i in found if i not in _end_token_ids(config)]


def _family(
    name: str, architectures: tuple[str, ...], stem: str, head: tuple[str, ...], **others: Any
) -> Family:
    """stem: what the names of transformers' classes begin with."""
    given = {
        "max_positions": _max_positions,
        "mask_token_id": _mask_token_id,
        **others,
    }
    return Family(
        name=name,
        model_types=(),  # the same types are used for classifiers
        architectures=architectures,
        transformers_class=f"{stem}ForMaskedLM",
        transformers_config=f"{stem}Config",
        to_config=_to_config,
        key_mapping={},
        attention=AttentionPattern.FULL,
        vocab_size=vocab_size,
        supports_infill=True,
        strategies=FULL_ATTENTION,
        head=head,
        caches=(
            CacheKind.NONE,
        ),  # ALBERT's layers are one module: it cannot tell whose keys it has
        ignored_keys=_IGNORED_KEYS,
        encloses_text=True,
        end_token_ids=_end_token_ids,
        suppressed_ids=_suppressed_ids,
        **given,
    )


_OF_ROBERTA: dict[str, Any] = {
    "max_positions": _positions_after_padding,
    "mask_token_id": _mask_or_last,
    "position_offset": _after_padding,
}

FAMILIES = (
    _family("bert", ("BertForMaskedLM", "BertForPreTraining"), "Bert", ("cls",)),
    _family(
        "distilbert",
        ("DistilBertForMaskedLM",),
        "DistilBert",
        ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ),
    _family("albert", ("AlbertForMaskedLM", "AlbertForPreTraining"), "Albert", ("predictions",)),
    _family("roberta", ("RobertaForMaskedLM",), "Roberta", ("lm_head",), **_OF_ROBERTA),
    _family("xlm-roberta", ("XLMRobertaForMaskedLM",), "XLMRoberta", ("lm_head",), **_OF_ROBERTA),
    _family("modernbert", ("ModernBertForMaskedLM",), "ModernBert", ("head", "decoder")),
)
