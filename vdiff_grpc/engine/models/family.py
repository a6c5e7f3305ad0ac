"""What a family of checkpoints is: a table, not code. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.strategies import EntropyBound, Strategy
from vdiff_grpc.engine.types import AttentionPattern, GrowthTokens

if TYPE_CHECKING:
    from vdiff_grpc.engine.models.loader import LoadedModel

__all__ = ["BLOCK_CAUSAL", "CAUSAL", "FULL_ATTENTION", "FULL_ATTENTION_SHIFTED", "Config", "Family"]

# What rows of a kind of attention can be decoded with. ReMDM's masks may fall anywhere on the
# canvas, and WINO reads each position's own logits: neither fits a block-causal row, and WINO
# does not fit logits that stand one place to the left.
CAUSAL = ("left_to_right",)
BLOCK_CAUSAL = (
    "fixed_schedule",
    "confidence_threshold",
    "dream_schedule",
    "factor",
    "dynamic_threshold",
    "entropy_bound",
    "klass",
    "local_leap",
    "freedave",
    "adaptive_parallel",
    "adaptive_confidence",
    "left_to_right",
    "editing",
)
FULL_ATTENTION_SHIFTED = (*BLOCK_CAUSAL, "remdm")
FULL_ATTENTION = (*FULL_ATTENTION_SHIFTED, "wino")


def _no_block(_: Config) -> int | None:
    return None


def _no_offset(_: Config) -> int:
    return 0


def _no_growth(_: Config) -> GrowthTokens | None:
    return None


def _nothing() -> None:
    """No preparation."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of one family map to a class of transformers.

    model_types, architectures: what config.json calls them.
    transformers_class, transformers_config: names in the transformers package.
    to_config: config.json -> keyword arguments of that config class.
    key_mapping: regular expressions of checkpoint keys -> keys of that class.
    ignored_keys: regular expressions of checkpoint keys that may lie there unused.
    vocab_size: ids that mean something; the embedding may be wider.
    max_positions: the longest canvas.
    mask_token_id: None: the family has no mask, as causal models have not.
    block_length: of block-causal attention, by the checkpoint's word.
    shift: logits of position p predict position p + shift.
    position_offset: what the class calls the first position.
    head: modules that make logits of the last hidden states, in order; empty where the class
    itself takes the positions that are wanted (`logits_to_keep`).
    encloses_text: a text's end is marked too, and the mark stays in sight ([CLS] ... [SEP]).
    end_token_ids: None: those of the config files and the tokenizer, and `end_token_names`.
    end_token_names: added tokens that end an answer besides the config's end ids.
    suppressed_ids: never generated, besides what the generation config suppresses.
    prepare: called before the weights are loaded; tells transformers what key_mapping cannot.
    caches: what may be kept of a canvas, the default first; None: what follows from the attention.
    unsplit: why its weights cannot be split over processes; empty: nothing is known against it.
    mixture_of_experts: the class takes an implementation of its experts.
    strategy_of: the default strategy by the checkpoint's word, instead of `default_strategy`.
    default_temperature: where the generation config names none.
    growth: its tokens that grow and shrink holes, if the checkpoint has them.
    network: the class of the loaded model where packed rows do not fit the network, which then
    keeps an attention of transformers. Imports torch when called.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    transformers_class: str
    transformers_config: str
    to_config: Callable[[Config], dict[str, Any]]
    key_mapping: Mapping[str, str]
    attention: AttentionPattern
    vocab_size: Callable[[Config], int]
    max_positions: Callable[[Config], int]
    mask_token_id: Callable[[Config], int | None]
    supports_infill: bool
    strategies: tuple[str, ...]
    default_strategy: Strategy = EntropyBound(0.05)  # docs/decoding-results.md
    shift: int = 0
    end_token_names: tuple[str, ...] = ()
    block_length: Callable[[Config], int | None] = _no_block
    position_offset: Callable[[Config], int] = _no_offset
    head: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()
    encloses_text: bool = False
    end_token_ids: Callable[[Config], list[int]] | None = None
    suppressed_ids: Callable[[Config], list[int]] | None = None
    prepare: Callable[[], None] = _nothing
    caches: tuple[CacheKind, ...] | None = None
    unsplit: str = ""
    mixture_of_experts: bool = False
    strategy_of: Callable[[Config], Strategy] | None = None
    default_temperature: float = 0.0
    growth: Callable[[Config], GrowthTokens | None] = _no_growth
    network: Callable[[], type[LoadedModel]] | None = None
