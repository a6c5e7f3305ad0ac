"""Ragged attention over packed rows, registered with transformers' attention interface.

Rows of any length lie one after the other in `[1, T]`, without padding: what a row computes
depends on nothing but itself. The layout travels through the model's keyword arguments. Queries
and keys have their own offsets, so that a cache can hold keys which are not recomputed.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

BACKEND = "vdiff_ragged"


class MaskRule(enum.Enum):
    """Which keys of its own segment a query sees."""

    FULL = "full"
    CAUSAL = "causal"


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """How packed tokens fall into segments. A segment attends to itself only.

    cu_q, cu_k: [num_segments + 1] offsets of queries and keys. Equal without a cache.
    rules: one per segment.
    merge: neighbouring segments of one shape may share a kernel call.
    """

    cu_q: tuple[int, ...]
    cu_k: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    merge: bool = True

    @classmethod
    def of_lengths(
        cls, lengths: Sequence[int], rules: Sequence[MaskRule], *, merge: bool = True
    ) -> AttentionLayout:
        """The layout without a cache: every segment's queries are its keys."""
        offsets = (0, *accumulate(lengths))
        return cls(offsets, offsets, tuple(rules), merge)

    def runs(self) -> list[tuple[int, int]]:
        """Segments (first, end) that are computed in one call."""
        if not self.merge:
            return [(i, i + 1) for i in range(len(self.rules))]
        found: list[tuple[int, int]] = []
        first = 0
        for i in range(1, len(self.rules) + 1):
            if i == len(self.rules) or self._shape(i) != self._shape(first):
                found.append((first, i))
                first = i
        return found

    def _shape(self, i: int) -> tuple[int, int, MaskRule]:
        return (
            self.cu_q[i + 1] - self.cu_q[i],
            self.cu_k[i + 1] - self.cu_k[i],
            self.rules[i],
        )


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: AttentionLayout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """query: [1, heads, T, head_dim]; key, value: [1, kv_heads, T_k, head_dim].

    Returns [1, T, heads, head_dim], as transformers' attention functions do.
    """
    assert layout is not None, "packed rows need a layout"
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for first, end in layout.runs():
        count = end - first
        q = _segments(query, layout.cu_q[first], layout.cu_q[end], count)
        k = _segments(key, layout.cu_k[first], layout.cu_k[end], count)
        v = _segments(value, layout.cu_k[first], layout.cu_k[end], count)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            scale=scaling,
            is_causal=layout.rules[first] is MaskRule.CAUSAL,
            enable_gqa=grouped,
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


def _no_mask(*_: object, **__: object) -> None:
    """The layout says who sees whom."""


def register() -> None:
    """Makes BACKEND known to transformers. May be called again."""
    AttentionInterface.register(BACKEND, ragged_attention)
    AttentionMaskInterface.register(BACKEND, _no_mask)
