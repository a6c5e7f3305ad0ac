"""Ragged attention over packed rows, registered with transformers' attention interface.

Rows of any length lie one after the other in `[1, T]`, without padding: what a row computes
depends on nothing but itself. The layout travels through the model's keyword arguments. A segment
with a cache attends to what the cache holds before its own tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from vdiff_grpc.engine.caches.row_cache import RowCache

BACKEND = "vdiff_ragged"

# What an attention layer may ask for that changes its result and is not computed here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cross_attention")


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


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """How packed tokens fall into segments. A segment attends to itself and its cache only.

    cu_q: [num_segments + 1] offsets. rules, caches: one per segment.
    merge: neighbouring segments of one shape may share a kernel call.
    masks: those that this step's layers share, as they are made.
    """

    cu_q: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    caches: tuple[RowCache | None, ...]
    merge: bool = True
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @classmethod
    def of_lengths(
        cls,
        lengths: Sequence[int],
        rules: Sequence[MaskRule],
        caches: Sequence[RowCache | None] = (),
        *,
        merge: bool = True,
    ) -> AttentionLayout:
        """Segments of these lengths, one after the other."""
        held = tuple(caches) or (None,) * len(rules)
        return cls((0, *accumulate(lengths)), tuple(rules), held, merge)

    def length(self, segment: int) -> int:
        return self.cu_q[segment + 1] - self.cu_q[segment]

    def runs(self) -> list[tuple[int, int]]:
        """Segments (first, end) that are computed in one call."""
        found: list[tuple[int, int]] = []
        first = 0
        for i in range(1, len(self.rules) + 1):
            if i == len(self.rules) or not self._alike(i, first):
                found.append((first, i))
                first = i
        return found

    def visible(
        self, segment: int, num_q: int, num_k: int, window: int | None, device: torch.device
    ) -> tuple[bool, Tensor | None]:
        """What a kernel is told: whether attention is plainly causal, else a mask if it needs one."""
        rule = self.rules[segment]
        if window is None or window >= num_k:
            if rule.sees_all(num_q, num_k):
                return False, None
            if rule == CAUSAL and num_q == num_k:
                return True, None
        if (segment, window) not in self.masks:
            self.masks[segment, window] = mask_of(rule, num_q, num_k, window).to(device)
        return False, self.masks[segment, window]

    def _alike(self, i: int, j: int) -> bool:
        return (
            self.merge
            and self.caches[i] is None
            and self.caches[j] is None
            and self.rules[i] == self.rules[j]
            and self.length(i) == self.length(j)
        )


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: AttentionLayout | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """query: [1, heads, T, head_dim]; key, value: [1, kv_heads, T, head_dim].

    sliding_window: of the layer, as transformers passes it.
    Returns [1, T, heads, head_dim], as transformers' attention functions do.
    """
    assert layout is not None, "packed rows need a layout"
    for name in _UNSUPPORTED:
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name} is not computed by {BACKEND}")
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for first, end in layout.runs():
        count = end - first
        begin, stop = layout.cu_q[first], layout.cu_q[end]
        q, k, v = (_segments(x, begin, stop, count) for x in (query, key, value))
        cache = layout.caches[first]
        if cache is not None:
            k, v = cache.extend(int(module.layer_idx), k, v)  # type: ignore[arg-type]
        causal, mask = layout.visible(first, q.shape[2], k.shape[2], sliding_window, q.device)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scaling, is_causal=causal, enable_gqa=grouped
        )
        # [count, heads, length, dim] -> [count * length, heads, dim]
        parts.append(out.transpose(1, 2).flatten(0, 1))
    packed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return packed.unsqueeze(0), None


def _segments(packed: Tensor, begin: int, end: int, count: int) -> Tensor:
    """[1, heads, T, dim] -> [count, heads, length, dim], a view."""
    _, heads, _, dim = packed.shape
    length = (end - begin) // count
    return packed[0, :, begin:end].view(heads, count, length, dim).transpose(0, 1)


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


def _no_mask(*_: object, **__: object) -> None:
    """The layout says who sees whom."""


def register() -> None:
    """Makes BACKEND known to transformers. May be called again."""
    AttentionInterface.register(BACKEND, ragged_attention)
    AttentionMaskInterface.register(BACKEND, _no_mask)
