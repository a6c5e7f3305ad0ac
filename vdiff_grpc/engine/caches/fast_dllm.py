"""Fast-dLLM's caches for full attention: approximate, since what is kept does not see what changes.

The first pass of a block computes the whole canvas and keeps it. Those that follow compute the rest
from the block on (`prefix`), or the block alone (`dual`), beside what was kept. A row may ask
for the whole canvas again every so many passes.

Source: arXiv:2505.22618; NVlabs/Fast-dLLM llada/generate.py 24cc59e (generate_with_prefix_cache,
generate_with_dual_cache). Where logits stand before their position (Dream) the part begins that much
earlier; the reference duplicates a row there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.caches.pages import Lease
from vdiff_grpc.engine.caches.policy import CachePolicy, Canvas, Kept, Part

Ints = npt.NDArray[np.int64]


class KeepPrefix(CachePolicy):
    """What stands before the block is kept."""

    def part(self, canvas: Canvas, lease: Lease | None, positions: Ints) -> Part:
        assert lease is not None, "a row that keeps has its pages"
        num = canvas.seen_end
        if self._is_stale(canvas, lease):
            return Part(0, num, Kept(lease, ((0, 0),), 0, num))
        begin, end = self._computed(canvas)
        return Part(begin, end, Kept(lease, ((0, begin), (end, num)), begin, 0))

    def most(self, canvas: Canvas, lease: Lease | None) -> int:
        if lease is None or self._is_stale(canvas, lease):
            return canvas.seen_end
        begin, end = self._computed(canvas)
        return end - begin

    def enter_block(self, lease: Lease) -> None:
        lease.length = 0

    def _is_stale(self, canvas: Canvas, lease: Lease) -> bool:
        refresh = canvas.cache_refresh_steps
        return not lease.length or (refresh > 0 and lease.age >= refresh)

    def _computed(self, canvas: Canvas) -> tuple[int, int]:
        return max(int(canvas.block_positions()[0]) - canvas.shift, 0), canvas.seen_end


class KeepBoth(KeepPrefix):
    """What stands before the block is kept, and what stands after it."""

    def _computed(self, canvas: Canvas) -> tuple[int, int]:
        begin, _ = super()._computed(canvas)
        return begin, int(canvas.block_positions()[-1]) + 1
