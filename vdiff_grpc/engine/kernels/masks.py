"""Which keys of its own segment a query sees. Knows no kernel and no device."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class MaskKind(enum.Enum):
    FULL = "full"
    CAUSAL = "causal"
    BLOCK_CAUSAL = "block_causal"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Which keys of its own segment a query sees.

    block: of BLOCK_CAUSAL, counted from canvas position 0.
    shadowed: of SHADOW, the index of the token that each of the last tokens stands for.
    """

    kind: MaskKind
    block: int = 0
    shadowed: tuple[int, ...] = ()

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """query [q, 1], key [1, k]: indices in the segment, what is cached included."""
        match self.kind:
            case MaskKind.FULL:
                return torch.ones(query.shape[0], key.shape[1], dtype=torch.bool)
            case MaskKind.CAUSAL:
                return key <= query
            case MaskKind.BLOCK_CAUSAL:
                return key // self.block <= query // self.block
            case MaskKind.SHADOW:
                return self._shadow(query, key)

    def sees_all(self, num_q: int, num_k: int) -> bool:
        """Whether the last num_q of num_k tokens see all of them."""
        match self.kind:
            case MaskKind.FULL:
                return True
            case MaskKind.CAUSAL:
                return num_q == 1
            case MaskKind.BLOCK_CAUSAL:  # one block: it sees itself and all before
                return (num_k - num_q) // self.block == (num_k - 1) // self.block
            case MaskKind.SHADOW:
                return False

    def _shadow(self, query: Tensor, key: Tensor) -> Tensor:
        """Canvas sees canvas; a shadow sees everything but the token it stands for."""
        canvas = key.shape[1] - len(self.shadowed)
        own = torch.full((query.shape[0], 1), -1)
        own[canvas:, 0] = torch.tensor(self.shadowed)
        return torch.where(query < canvas, key < canvas, key != own)


FULL = MaskRule(MaskKind.FULL)
CAUSAL = MaskRule(MaskKind.CAUSAL)


def block_causal(block: int) -> MaskRule:
    """A token sees its own block of so many tokens and those before."""
    return MaskRule(MaskKind.BLOCK_CAUSAL, block=block)


def shadow(shadowed: Sequence[int]) -> MaskRule:
    """The segment's last tokens each stand for an earlier one, which they do not see."""
    return MaskRule(MaskKind.SHADOW, shadowed=tuple(shadowed))


def mask_of(rule: MaskRule, num_q: int, num_k: int, window: int | None = None) -> Tensor:
    """[num_q, num_k] bool: which keys a query sees. The last num_q of the num_k tokens ask."""
    query = torch.arange(num_k - num_q, num_k).unsqueeze(1)
    key = torch.arange(num_k).unsqueeze(0)
    allowed = rule.allows(query, key)
    if window is not None:
        allowed &= _in_window(rule, query, key, window)
    return allowed


def _in_window(rule: MaskRule, query: Tensor, key: Tensor, window: int) -> Tensor:
    """Layers pass an exclusive window: one-sided where causal, else to both sides."""
    if rule.shadowed:  # a shadow stands where its token stands
        places = torch.arange(key.shape[1])
        places[-len(rule.shadowed) :] = torch.tensor(rule.shadowed)
        query, key = places[query], places[key]
    distance = query - key
    return (distance if rule.kind is MaskKind.CAUSAL else distance.abs()) < window
