"""Attention by FlexAttention: every rule, over the whole packed layout in one call.

Who sees whom is read from a few numbers per token, so that a step's layout is data and the
compiled kernel is one for all. Without a compiler (CPU) all scores are computed, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from vdiff_grpc.engine.kernels.masks import MaskKind, MaskRule
from vdiff_grpc.engine.kernels.segments import Segments

_BLOCK = 128  # queries, and keys, of which one entry of the block mask tells
_MASK = "flex mask"


def refusal(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, batch_invariant: bool
) -> str:
    """Why it cannot work there; empty if nothing is known against it."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device}"
    if batch_invariant:
        return (
            "it does not keep answers bit-equal in any company (batch_invariant): the blocks in "
            "which it adds up a row's keys depend on where the row lies among others"
        )
    return ""


def takes(rule: MaskRule, num_q: int, num_k: int) -> bool:
    return True


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """See registry.attend."""
    if (_MASK, window) not in segments.derived:
        segments.derived[_MASK, window] = block_mask(segments, window, query.device)
    function = _compiled() if query.is_cuda else flex_attention
    out: Tensor = function(
        *(x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)),
        block_mask=segments.derived[_MASK, window],
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What decides who sees whom, in indices of a segment's keys.

    reach, skipped, stands: [num_q] the last key that a query sees, one that it does not (-1: none),
    and where it stands for a window. index, places: [num_k] a key's own, and where it stands.
    """

    reach: Tensor
    skipped: Tensor
    stands: Tensor
    index: Tensor
    places: Tensor

    @classmethod
    def of(cls, rule: MaskRule, num_q: int, num_k: int) -> _Sight:
        """Of one segment."""
        index = torch.arange(num_k)
        query, places = index[num_k - num_q :], index.clone()
        reach = torch.full((num_q,), num_k - 1)
        skipped = torch.full((num_q,), -1)
        match rule.kind:
            case MaskKind.FULL:
                pass
            case MaskKind.CAUSAL:
                reach = query
            case MaskKind.BLOCK_CAUSAL:
                reach = (query // rule.block + 1) * rule.block - 1
            case MaskKind.SHADOW:
                canvas = num_k - len(rule.shadowed)
                places[canvas:] = torch.tensor(rule.shadowed)
                is_shadow = query >= canvas
                reach[~is_shadow] = canvas - 1
                skipped[is_shadow] = places[query[is_shadow]]
        return cls(reach, skipped, places[num_k - num_q :], index, places)


def block_mask(segments: Segments, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries looks at, and who sees whom in them."""
    count = len(segments.rules)
    sights = [_Sight.of(*segments.shape(i)) for i in range(count)]
    packed = _Sight(
        *(
            torch.cat([getattr(sight, name) for sight in sights]).to(device)
            for name in _Sight.__slots__
        )
    )
    of_queries, of_keys = (
        torch.arange(count).repeat_interleave(torch.tensor(offsets).diff()).to(device)
        for offsets in (segments.cu_q, segments.cu_k)
    )
    num_blocks, indices = _blocks(segments)
    return BlockMask.from_kv_blocks(
        num_blocks.to(device),
        indices.to(device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=_mask_mod(packed, of_queries, of_keys, window),
        seq_lengths=(segments.cu_q[-1], segments.cu_k[-1]),
    )


def _mask_mod(sight: _Sight, of_queries: Tensor, of_keys: Tensor, window: int | None) -> Any:
    """of_queries, of_keys: the segment of each.

    A window reaches to both sides; where attention looks back, `reach` cuts one off.
    """
    reach, skipped, stands = sight.reach, sight.skipped, sight.stands
    index, places = sight.index, sight.places

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (of_queries[q] == of_keys[k]) & (index[k] <= reach[q]) & (index[k] != skipped[q])
        if window is not None:
            seen = seen & ((stands[q] - places[k]).abs() < window)
        return seen

    return sees


def _blocks(segments: Segments) -> tuple[Tensor, Tensor]:
    """[1, 1, query blocks] how many blocks of keys each looks at; [.., key blocks] which.

    Those that hold keys of the segments in the block: neighbours, as segments are.
    """
    num_q, num_k = segments.cu_q[-1], segments.cu_k[-1]
    begins = torch.arange(0, num_q, _BLOCK)
    ends = (begins + _BLOCK).clamp_max(num_q)
    cu_q, cu_k = torch.tensor(segments.cu_q), torch.tensor(segments.cu_k)
    first = torch.searchsorted(cu_q, begins, right=True) - 1
    last = torch.searchsorted(cu_q, ends)
    low, high = cu_k[first] // _BLOCK, -(-cu_k[last] // _BLOCK)
    width = -(-num_k // _BLOCK)
    indices = (low[:, None] + torch.arange(width)) % width
    counts = high - low
    return counts[None, None].int(), indices[None, None].int().contiguous()
