"""Attention by torch's scaled_dot_product_attention, a call for each run of like segments.

Takes everything, everywhere: the CPU's backend, and the others' fallback.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff_grpc.engine.kernels.masks import CAUSAL, MaskRule, mask_of
from vdiff_grpc.engine.kernels.segments import Segments, runs

_RUNS = "sdpa runs"


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
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for first, end in _runs(segments):
        count = end - first
        q = _together(query, segments.cu_q[first], segments.cu_q[end], count)
        k, v = (_together(x, segments.cu_k[first], segments.cu_k[end], count) for x in (key, value))
        causal, mask = _visible(segments, first, window, q.device)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=grouped
        )
        # [count, heads, length, dim] -> [count * length, heads, dim]
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _together(packed: Tensor, begin: int, end: int, count: int) -> Tensor:
    """[num_tokens, heads, dim] -> [count, heads, length, dim], a view."""
    _, heads, dim = packed.shape
    return packed[begin:end].view(count, (end - begin) // count, heads, dim).transpose(1, 2)


def _runs(segments: Segments) -> list[tuple[int, int]]:
    """Segments (first, end) that are computed in one call."""
    found: list[tuple[int, int]] | None = segments.derived.get(_RUNS)
    if found is None:
        count = len(segments.rules)
        each = [(i, i + 1) for i in range(count)]
        found = runs([segments.shape(i) for i in range(count)]) if segments.merge else each
        segments.derived[_RUNS] = found
    return found


def _visible(
    segments: Segments, segment: int, window: int | None, device: torch.device
) -> tuple[bool, Tensor | None]:
    """What the kernel is told: whether attention is plainly causal, else a mask if it needs one."""
    rule, num_q, num_k = shape = segments.shape(segment)
    if window is None or window >= num_k:
        if rule.sees_all(num_q, num_k):
            return False, None
        if rule == CAUSAL and num_q == num_k:
            return True, None
    if (shape, window) not in segments.derived:
        segments.derived[shape, window] = mask_of(rule, num_q, num_k, window).to(device)
    return False, segments.derived[shape, window]
