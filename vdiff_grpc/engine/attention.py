"""Ragged attention over packed rows, registered with transformers' attention interface.

Rows of any length lie one after the other in `[1, T]`, without padding: what a row computes
depends on nothing but itself. The layout travels through the model's keyword arguments. A segment
with a window sees what is kept of other tokens before its own.
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

from vdiff_grpc.engine.caches.key_values import KeyValues, Traffic, Window

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
    """How packed tokens fall into segments. A segment sees itself and its window only.

    cu_q: [num_segments + 1] offsets of the segments' own tokens; cu_k: the same of the keys that
    they see, a window's first. rules: one per segment.
    traffic: with the memory for keys and values; None where no segment has a window.
    merge: neighbouring segments of one shape may share a kernel call.
    masks: those that this step's layers share, as they are made.
    """

    cu_q: tuple[int, ...]
    cu_k: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    traffic: Traffic | None = None
    merge: bool = True
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @classmethod
    def of_lengths(
        cls,
        lengths: Sequence[int],
        rules: Sequence[MaskRule],
        windows: Sequence[Window | None] = (),
        *,
        merge: bool = True,
    ) -> AttentionLayout:
        """Segments of these lengths, one after the other."""
        held = tuple(windows) or (None,) * len(rules)
        seen = [0 if window is None else len(window.reads) for window in held]
        cu_q = (0, *accumulate(lengths))
        cu_k = (0, *accumulate(n + s for n, s in zip(lengths, seen, strict=True)))
        traffic = None if all(window is None for window in held) else Traffic(cu_q, held)
        return cls(cu_q, cu_k, tuple(rules), traffic, merge)

    def lengths(self, segment: int) -> tuple[int, int]:
        """Its own tokens, and the keys that they see."""
        cu_q, cu_k, after = self.cu_q, self.cu_k, segment + 1
        return cu_q[after] - cu_q[segment], cu_k[after] - cu_k[segment]

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
        return self.merge and self.rules[i] == self.rules[j] and self.lengths(i) == self.lengths(j)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: AttentionLayout | None = None,
    memory: KeyValues | None = None,
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
    if layout.traffic is not None:
        assert memory is not None, "windows look into a memory"
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
        key, value = memory.extend(layer, key, value, layout.traffic)
        key, value = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
    parts = []
    for first, end in layout.runs():
        count = end - first
        q = _segments(query, layout.cu_q[first], layout.cu_q[end], count)
        k, v = (_segments(x, layout.cu_k[first], layout.cu_k[end], count) for x in (key, value))
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
    length = (end - begin) // count
    own = packed[0, :, begin:end]
    return own.unfold(1, length, length).permute(1, 0, 3, 2) if count > 1 else own.unsqueeze(0)


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
