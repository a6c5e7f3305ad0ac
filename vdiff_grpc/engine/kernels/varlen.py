"""Attention by torch's varlen_attn: all segments that see alike in one call of FlashAttention.

CUDA, half precision. Its causal mask is aligned to the last key (FlashAttention from 2.1 on), as
ours is: a segment's queries are the last of its tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from vdiff_grpc.engine.kernels.masks import MaskKind, MaskRule
from vdiff_grpc.engine.kernels.segments import Segments, runs

_MAX_HEAD_DIM = 256
_CAPABILITY = (8, 0)
_CONSTANT = 128  # the least that the kernel is told of the longest segment
_RUNS = "varlen runs"


def _find() -> tuple[Any, frozenset[str]]:
    """The function of this torch and what it can be told; versions differ."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


_VARLEN, _KNOWN = _find()


def refusal(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, batch_invariant: bool
) -> str:
    """Why it cannot work there; empty if nothing is known against it."""
    if not {"scale", "window_size"} <= _KNOWN:
        return f"torch {torch.__version__} has no varlen_attn with scale and window"
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes float16 and bfloat16, not {dtype}"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"heads have {head_dim} numbers; it takes multiples of 8 up to {_MAX_HEAD_DIM}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if batch_invariant and "num_splits" not in _KNOWN:
        return f"torch {torch.__version__} cannot be told not to split keys (num_splits)"
    return ""


def takes(rule: MaskRule, num_q: int, num_k: int) -> bool:
    if rule.kind is MaskKind.BLOCK_CAUSAL:
        return rule.sees_all(num_q, num_k)
    return rule.kind in (MaskKind.FULL, MaskKind.CAUSAL)


def window_of(rule: MaskRule, window: int | None) -> tuple[int, int]:
    """How many keys before and after its own a query sees; -1: all. Ours leaves its end out."""
    reach = -1 if window is None else window - 1
    return reach, 0 if rule.kind is MaskKind.CAUSAL else reach


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """See registry.attend."""
    more: dict[str, Any] = {} if segments.merge or "num_splits" not in _KNOWN else {"num_splits": 1}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _KNOWN:
            more["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    parts = []
    for first, end in _runs(segments, window):
        q, k, v = (
            x[offsets[first] : offsets[end]]
            for x, offsets in ((query, segments.cu_q), (key, segments.cu_k), (value, segments.cu_k))
        )
        cu_q, cu_k, max_q, max_k = _offsets(segments, first, end, window, query.device)
        sides = window_of(segments.rules[first], window)
        parts.append(
            _VARLEN(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=sides, **more)
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(segments: Segments, window: int | None) -> list[tuple[int, int]]:
    """Neighbours that see alike; filler sees all, among causal segments too."""
    found: list[tuple[int, int]] | None = segments.derived.get((_RUNS, window))
    if found is None:
        found = runs([window_of(rule, window) for rule in segments.rules])
        segments.derived[_RUNS, window] = found
    return found


def _offsets(
    segments: Segments, first: int, end: int, window: int | None, device: torch.device
) -> tuple[Tensor, Tensor, int, int]:
    """cu_q, cu_k on the device, and the longest of each, once per step.

    The kernel takes another path for a longest of 1, and for a window that holds the longest: it
    is told more, so that a segment's path does not depend on its company.
    """
    address = (_RUNS, first, end, window)
    if address not in segments.derived:
        part = segments.part(first, end)
        cu_q, cu_k = (
            torch.tensor(offsets, dtype=torch.int32).to(device, non_blocking=True)
            for offsets in (part.cu_q, part.cu_k)
        )
        counts = range(end - first)
        max_q = max(part.num_q(i) for i in counts)
        max_k = max(part.num_k(i) for i in counts)
        if not segments.merge:
            max_q, max_k = (max(n, _CONSTANT, (window or 0) + 1) for n in (max_q, max_k))
        segments.derived[address] = (cu_q, cu_k, max_q, max_k)
    found: tuple[Tensor, Tensor, int, int] = segments.derived[address]
    return found
