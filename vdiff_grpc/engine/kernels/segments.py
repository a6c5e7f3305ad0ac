"""The plan of one step's attention: how packed tokens fall into segments. Made on the host."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from vdiff_grpc.engine.kernels.masks import MaskRule

SDPA = "sdpa"


@dataclass(frozen=True, slots=True)
class Segments:
    """Each segment attends to its own keys only.

    cu_q, cu_k: [num_segments + 1] offsets. A segment may have more keys than queries: its queries
    are the last of its tokens. rules: one per segment.
    merge: what computes a segment may depend on what lies beside it, as long as its result does
    not by much; False: not at all.
    backends: names in order of preference. The first that takes a segment computes it, whatever
    its company.
    derived: what kernels have made of the plan, for all layers of the step.
    """

    cu_q: tuple[int, ...]
    cu_k: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    merge: bool = True
    backends: tuple[str, ...] = (SDPA,)
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def num_q(self, segment: int) -> int:
        return self.cu_q[segment + 1] - self.cu_q[segment]

    def num_k(self, segment: int) -> int:
        return self.cu_k[segment + 1] - self.cu_k[segment]

    def shape(self, segment: int) -> tuple[MaskRule, int, int]:
        """All that a segment's computation depends on, besides the window."""
        return self.rules[segment], self.num_q(segment), self.num_k(segment)

    def part(self, first: int, end: int) -> Segments:
        """Some of them, counted from the first."""
        return Segments(
            tuple(offset - self.cu_q[first] for offset in self.cu_q[first : end + 1]),
            tuple(offset - self.cu_k[first] for offset in self.cu_k[first : end + 1]),
            self.rules[first:end],
            self.merge,
            self.backends,
        )


def runs(keys: list[Any]) -> list[tuple[int, int]]:
    """(first, end) of neighbours with equal keys."""
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))
