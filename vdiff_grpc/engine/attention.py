"""Ragged attention over packed rows, registered with transformers' attention interface.

Rows of any length lie one after the other in `[1, T]`, without padding: what a row computes
depends on nothing but itself. The layout travels through the model's keyword arguments. A segment
with a window sees what is kept of other tokens before its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from vdiff_grpc.engine.caches.key_values import KeyValues, Traffic, Window
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
    """How packed tokens fall into segments. A segment sees its window and itself only.

    segments: what a window shows counts among a segment's keys.
    traffic: with the memory for keys and values; None where no segment has a window.
    """

    segments: Segments
    traffic: Traffic | None = None

    @classmethod
    def of_lengths(
        cls,
        lengths: Sequence[int],
        rules: Sequence[MaskRule],
        windows: Sequence[Window | None] = (),
        *,
        merge: bool = True,
        backends: tuple[str, ...] = (SDPA,),
    ) -> AttentionLayout:
        """Segments of these lengths, one after the other. backends: as in Segments."""
        held = tuple(windows) or (None,) * len(rules)
        seen = (0 if window is None else len(window.reads) for window in held)
        cu_q = (0, *accumulate(lengths))
        cu_k = (0, *accumulate(map(sum, zip(lengths, seen, strict=True))))
        traffic = None if all(window is None for window in held) else Traffic(cu_q, held)
        return cls(Segments(cu_q, cu_k, tuple(rules), merge, backends), traffic)


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
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if layout.traffic is not None:
        assert memory is not None, "windows look into a memory"
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        key, value = memory.extend(layer, key, value, layout.traffic)
    return attend(query, key, value, layout.segments, scaling, sliding_window).unsqueeze(0), None


def _no_mask(*_: object, **__: object) -> None:
    """The layout says who sees whom."""


def register() -> None:
    """Makes BACKEND known to transformers. May be called again."""
    AttentionInterface.register(BACKEND, ragged_attention)
    AttentionMaskInterface.register(BACKEND, _no_mask)
