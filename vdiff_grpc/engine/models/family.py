"""What a family of checkpoints is: a table, not code. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vdiff_grpc.engine.types import AttentionPattern

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of one family map to a class of transformers.

    transformers_class, transformers_config: names in the transformers package.
    to_config: config.json -> keyword arguments of that config class.
    key_mapping: regular expressions of checkpoint keys -> keys of that class.
    vocab_size: ids that mean something; the embedding may be wider.
    shift: logits of position p predict position p + shift.
    end_token_names: added tokens that end an answer besides the config's end ids.
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
    mask_token_id: Callable[[Config], int]
    supports_infill: bool
    strategies: tuple[str, ...]
    shift: int = 0
    end_token_names: tuple[str, ...] = ()
