"""Which backend computes a segment's attention: chosen by what it can do, and tried first."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from vdiff_grpc.engine.kernels import flex, sdpa, varlen
from vdiff_grpc.engine.kernels.masks import CAUSAL, FULL, block_causal, shadow
from vdiff_grpc.engine.kernels.segments import SDPA, Segments, runs
from vdiff_grpc.errors import CheckpointError

logger = logging.getLogger(__name__)

AUTO = "auto"
BACKENDS: dict[str, ModuleType] = {"varlen": varlen, "flex": flex, SDPA: sdpa}

# What auto takes where it works. flex compiles for as long as a minute when it is first used:
# only by name, until it has been measured.
_AUTOMATIC = ("varlen",)

_PARTS = "parts"
_TOLERANCE = 0.05  # of numbers that are at most a few; bfloat16 stays below 0.02
_WINDOW = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where attention is to be computed."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    batch_invariant: bool = False


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """[num_q, heads, head_dim].

    query: [num_q, heads, head_dim]; key, value: [num_k, kv_heads, head_dim]; packed as `segments`
    says. scale: of the scores; None: 1 / sqrt(head_dim). window: a query sees keys that are less
    than so many tokens away; None: any.
    """
    parts = _parts(segments)
    if len(parts) == 1:
        out: Tensor = BACKENDS[parts[0][0]].attend(query, key, value, segments, scale, window)
        return out
    return torch.cat(
        [
            BACKENDS[name].attend(query[q], key[k], value[k], part, scale, window)
            for name, q, k, part in parts
        ]
    )


def _parts(segments: Segments) -> list[tuple[str, slice, slice, Segments]]:
    """Neighbours that one backend computes. A segment's backend does not depend on its company."""
    if _PARTS not in segments.derived:
        names = [
            next(n for n in (*segments.backends, SDPA) if BACKENDS[n].takes(*segments.shape(i)))
            for i in range(len(segments.rules))
        ]
        segments.derived[_PARTS] = [
            (
                names[first],
                slice(segments.cu_q[first], segments.cu_q[end]),
                slice(segments.cu_k[first], segments.cu_k[end]),
                segments.part(first, end),
            )
            for first, end in runs(names)
        ]
    found: list[tuple[str, slice, slice, Segments]] = segments.derived[_PARTS]
    return found


def choose(wanted: str, place: Place) -> tuple[str, ...]:
    """Backends in order of preference; what none of them takes, sdpa computes.

    wanted: a name, or "auto". Raises CheckpointError where the named one does not work.
    """
    if wanted == SDPA:
        return (SDPA,)
    if wanted != AUTO:
        if reason := refusal(wanted, place):
            raise CheckpointError(f"attention {wanted!r} cannot be used here: {reason}")
        return (wanted, SDPA)
    found = []
    for name in _AUTOMATIC if place.device.type == "cuda" else ():
        if reason := refusal(name, place):
            logger.info("attention without %s: %s", name, reason)
        else:
            found.append(name)
    return (*found, SDPA)


def refusal(name: str, place: Place) -> str:
    """Why a backend cannot be used there, told by itself or found by a trial; empty if it can."""
    reason: str = BACKENDS[name].refusal(
        place.device, place.dtype, place.head_dim, batch_invariant=place.batch_invariant
    )
    return reason or _trial(name, place)


@torch.inference_mode()
def _trial(name: str, place: Place) -> str:
    """A few short segments of every rule that it takes, with and without more keys, against sdpa."""
    backend = BACKENDS[name]
    wanted = [
        (FULL, 5, 5),
        (FULL, 3, 40),
        (CAUSAL, 17, 17),
        (CAUSAL, 3, 140),
        (block_causal(4), 4, 12),
        (block_causal(4), 9, 12),
        (shadow((1, 2)), 6, 6),
    ]
    shapes = [shape for shape in wanted if backend.takes(*shape)]
    cu_q, cu_k = [0], [0]
    for _, num_q, num_k in shapes:
        cu_q.append(cu_q[-1] + num_q)
        cu_k.append(cu_k[-1] + num_k)
    segments = Segments(
        tuple(cu_q), tuple(cu_k), tuple(rule for rule, *_ in shapes), not place.batch_invariant
    )
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, heads, place.head_dim, generator=generator).to(place.device, place.dtype)
        for count, heads in (
            (cu_q[-1], place.heads),
            (cu_k[-1], place.kv_heads),
            (cu_k[-1], place.kv_heads),
        )
    )
    for window in (None, _WINDOW):
        expected = sdpa.attend(query, key, value, segments, None, window)
        try:
            found = backend.attend(query, key, value, segments, None, window)
            difference = float((found.float() - expected.float()).abs().max())
        except Exception as error:  # a kernel that does not fit may fail in any way
            first = (str(error).splitlines() or [""])[0]
            return f"{type(error).__name__}: {first}"
        if not difference <= _TOLERANCE:
            return f"its results differ from sdpa's by {difference:.2g}"
    return ""
