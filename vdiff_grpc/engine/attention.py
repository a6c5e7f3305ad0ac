"""Ragged attention over packed rows, registered with transformers' attention interface.

Rows of any length lie one after the other in `[1, T]`, without padding: what a row computes
depends on nothing but itself. The layout travels through the model's keyword arguments. A segment
with a cache attends to what the cache holds before its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from vdiff_grpc.engine.caches.row_cache import RowCache
from vdiff_grpc.engine.kernels.masks import CAUSAL, FULL, MaskRule, block_causal, mask_of, shadow
from vdiff_grpc.engine.kernels.registry import attend
from vdiff_grpc.engine.kernels.segments import SDPA, Segments

__all__ = [
    "BACKEND",
    "CAUSAL",
    "FULL",
    "AttentionLayout",
    "MaskRule",
    "block_causal",
    "mask_of",
    "ragged_attention",
    "register",
    "shadow",
]

BACKEND = "vdiff_ragged"

# What an attention layer may ask for that changes its result and is not computed here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cross_attention")


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """How packed tokens fall into segments. A segment attends to itself and its cache only.

    segments: what is kept in a cache counts among a segment's keys. caches: one per segment.
    """

    segments: Segments
    caches: tuple[RowCache | None, ...]

    @classmethod
    def of_lengths(
        cls,
        lengths: Sequence[int],
        rules: Sequence[MaskRule],
        caches: Sequence[RowCache | None] = (),
        *,
        merge: bool = True,
        backends: tuple[str, ...] = (SDPA,),
    ) -> AttentionLayout:
        """Segments of these lengths, one after the other. backends: as in Segments."""
        held = tuple(caches) or (None,) * len(rules)
        cu_q = (0, *accumulate(lengths))
        kept = (0 if cache is None else cache.length for cache in held)
        cu_k = (0, *accumulate(map(sum, zip(lengths, kept, strict=True))))
        return cls(Segments(cu_q, cu_k, tuple(rules), merge, backends), held)

    def with_kept(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [num_k, kv_heads, head_dim], and what caches keep of it."""
        keys, values = [], []
        for i, cache in enumerate(self.caches):
            mine = slice(self.segments.cu_q[i], self.segments.cu_q[i + 1])
            k, v = key[mine], value[mine]
            if cache is not None:
                k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
                # copied: a row's next variant writes to the same places
                k, v = (x[0].transpose(0, 1).clone() for x in cache.extend(layer, k, v))
            keys.append(k)
            values.append(v)
        return torch.cat(keys), torch.cat(values)


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
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if any(cache is not None for cache in layout.caches):
        key, value = layout.with_kept(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    return attend(query, key, value, layout.segments, scaling, sliding_window).unsqueeze(0), None


def _no_mask(*_: object, **__: object) -> None:
    """The layout says who sees whom."""


def register() -> None:
    """Makes BACKEND known to transformers. May be called again."""
    AttentionInterface.register(BACKEND, ragged_attention)
    AttentionMaskInterface.register(BACKEND, _no_mask)
