"""The ideal schedule that a server's latency is compared with. Knows nothing of servers.

Everyone joins at the first step after arriving, all who are there share every step, nothing costs
time but the steps, and those take what a bare packed forward pass of their size takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Of each step of one request: packed tokens, head rows.
Steps = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    steps: Steps


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a bare step: of its body by packed tokens, and what more head rows add to it.

    body, head: (size, seconds) by rising size, interpolated between and extended beyond.
    """

    body: tuple[tuple[int, float], ...]
    head: tuple[tuple[int, float], ...]

    def __call__(self, tokens: int, head_rows: int) -> float:
        return _interpolated(self.body, tokens) + _interpolated(self.head, head_rows)


def fixed_schedule(prompt: int, new: int, block: int, steps: int) -> Steps:
    """The fixed schedule's steps with the whole canvas as packed tokens, without a cache."""
    blocks, rest = divmod(new, block)
    assert not rest, "blocks of equal length"
    in_block, rest = divmod(steps, blocks)
    assert not rest, "as many steps in each block"
    share, more = divmod(block, in_block)  # earlier steps take the remainder
    masked = [block - share * step - min(step, more) for step in range(in_block)]
    return tuple((prompt + new, rows) for rows in masked * blocks)


def latencies(
    arrivals: Sequence[Arrival], step_s: Callable[[int, int], float], max_rows: int
) -> list[float]:
    """Seconds from each arrival, in the order of time, to the end of its last step."""
    ends = [0.0] * len(arrivals)
    running: list[tuple[int, int]] = []  # who, and its next step
    coming = 0
    now = 0.0
    while running or coming < len(arrivals):
        if not running:
            now = max(now, arrivals[coming].at_s)
        while coming < len(arrivals) and arrivals[coming].at_s <= now and len(running) < max_rows:
            running.append((coming, 0))
            coming += 1
        sizes = [arrivals[who].steps[step] for who, step in running]
        now += step_s(sum(tokens for tokens, _ in sizes), sum(rows for _, rows in sizes))
        left = []
        for who, step in running:
            if step + 1 < len(arrivals[who].steps):
                left.append((who, step + 1))
            else:
                ends[who] = now - arrivals[who].at_s
        running = left
    return ends


def _interpolated(points: Sequence[tuple[int, float]], size: int) -> float:
    right = min(max(bisect_right([at for at, _ in points], size), 1), len(points) - 1)
    (low, below), (high, above) = points[right - 1], points[right]
    return below + (above - below) * (size - low) / (high - low)
