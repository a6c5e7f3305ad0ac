"""How much a request with a latency budget is hurried, so as to be in time. Knows no tensors.

Each step asks of each such row: so many masks are left, so much time; how many steps is that? When
its strategy's own pace does not suffice, first what the model is fairly sure of is filled as well,
less sure the less time there is; and when that would not suffice either, at least as many positions
as it takes. Rows without a budget are never touched.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from vdiff_grpc.engine.columns import NO_HASTE, Action, Haste
from vdiff_grpc.engine.events import FinishReason, Output
from vdiff_grpc.engine.scheduler import Scheduler
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.step_times import StepTimes
from vdiff_grpc.engine.strategies import LeftToRight, Strategy
from vdiff_grpc.engine.types import ResolvedRequest
from vdiff_grpc.errors import BudgetError

if TYPE_CHECKING:
    from vdiff_grpc.engine.runner import RowStep

QUEUE, REFUSE = OVERLOADS = ("queue", "refuse")

# Confidences from which on a prediction is filled as well, by rising haste.
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_KEPT_BACK = 0.1  # of the time that is left: others may come
_RECENT = 0.05  # weight of one step in a level's pace, at the least
_SLOWEST = 0.25  # positions of a step: some fill none at first
_BELIEF = 4.0  # positions for which a row is believed to be like the others
_MAX_PACES = 1024
_UNMASK = int(Action.UNMASK)


@dataclass(slots=True)
class _Progress:
    """Of one row: positions filled, and what their levels' paces had promised."""

    filled: float = _BELIEF
    promised: float = _BELIEF


@dataclass(slots=True)
class _Pace:
    """Positions of a step of a strategy at a level."""

    mean: float
    count: int = 0


class Hurry:
    """Learns the time of steps and the paces of strategies; sets every row's haste before a step.

    overload: what happens to a request that cannot be in time even at the utmost haste.
    """

    def __init__(self, overload: str = QUEUE) -> None:
        self.times = StepTimes()
        self._refuses = overload == REFUSE
        self._paces: dict[tuple[Strategy, float, int], _Pace] = {}
        self._progress: WeakKeyDictionary[Sequence, _Progress] = WeakKeyDictionary()
        self._levels: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        self._head_rows = 0

    def admit(self, rows: Rows[Sequence], scheduler: Scheduler, now_ns: int) -> None:
        """Raises BudgetError for what would be late at the utmost haste, if that is the policy."""
        due_ns = rows[0].request.due_ns
        if not self._refuses or due_ns is None or not self.times.num_steps:
            return
        held = [*scheduler.running, *scheduler.queued]
        size = max(row.num_step_tokens for row in (*held, *rows))
        places = max(1, min(scheduler.max_running_rows, scheduler.max_step_tokens // size))
        step_s = self._step_s([*held, *rows][-places:])
        ends = [self._least_steps(row) for row in scheduler.running]
        ends += [0] * (places - len(ends))
        heapq.heapify(ends)
        for row in (*scheduler.queued, *rows):
            last = heapq.heappop(ends) + self._least_steps(row)
            heapq.heappush(ends, last)
        needed_s, left_s = last * step_s, (due_ns - now_ns) / 1e9
        if needed_s > left_s:
            raise BudgetError(
                f"latency_budget: {left_s:.3g} s are left, {needed_s:.3g} s would be needed at the "
                f"utmost haste with {len(held)} rows held",
                max(0.1, needed_s - left_s),
            )

    def prepare(self, rows: Rows[Sequence], scheduler: Scheduler, now_ns: int) -> None:
        """Sets the haste of the rows of the next step."""
        self._head_rows = sum(len(row.masked_in_block()) for row in rows if not row.num_pages_now)
        # not before the lengths of its holes are chosen, nor when only its likelihood is wanted
        hurried = [
            row
            for row in rows
            if row.request.due_ns is not None and row.search is None and not row.finished
        ]
        if not hurried:
            return
        # Who waits with a budget of its own has to be in time as well.
        waiting = [row for row in scheduler.queued if row.request.due_ns is not None]
        step_s = self._step_s([*scheduler.running, *waiting])
        for row in hurried:
            assert row.request.due_ns is not None
            left_s = (row.request.due_ns - now_ns) / 1e9 * (1 - _KEPT_BACK)
            reading = math.ceil(
                row.num_pages_ahead * row.page_tokens / scheduler.max_prompt_step_tokens
            )
            num_steps = math.floor(left_s / step_s) - reading if step_s else math.inf
            level, floor = self._level(row, num_steps)
            self._levels[row] = level
            threshold = LEVELS[level - 1] if level else NO_HASTE.threshold
            row.haste = Haste(threshold, floor) if level or floor else NO_HASTE

    def note(self, results: Rows[RowStep], seconds: float) -> None:
        """The step that was prepared took so long and gave this."""
        self.times.note(sum(result.computed for result in results), self._head_rows, seconds)
        for result in results:
            row = result.sequence
            if not row.params.strategy.HURRIES or not result.steps or row.haste.floor:
                continue
            if row.request.growing:
                continue  # not all that it decides is filled
            filled = sum(int(np.count_nonzero(c.actions == _UNMASK)) for c in result.steps)
            level = self._levels.get(row, 0)
            key = self._key(row, level)
            if key not in self._paces and len(self._paces) >= _MAX_PACES:
                self._paces.clear()
            pace = self._paces.setdefault(key, _Pace(float(filled)))
            progress = self._progress.setdefault(row, _Progress())
            progress.filled += filled
            progress.promised += pace.mean
            pace.count += 1
            pace.mean += max(_RECENT, 1 / pace.count) * (filled - pace.mean)

    def _level(self, row: Sequence, num_steps: float) -> tuple[int, int]:
        """The least haste by which the row is done in so many steps: its level, and a floor."""
        blocks = masks_left(row)
        progress = self._progress.get(row)
        own = progress.filled / progress.promised if progress else 1.0
        pace = 0.0
        levels = 1 if isinstance(row.params.strategy, LeftToRight) else len(LEVELS) + 1
        for level in range(levels):
            guess = self._scheduled(row) if not level else max(pace, 1 + level / 3)
            known = self._paces.get(self._key(row, level))
            pace = max(pace, own * (known.mean if known else guess), _SLOWEST)
            if sum(math.ceil(count / pace) for count in blocks) <= num_steps:
                return level, 0
        floor = 1
        while floor < max(blocks, default=1):
            if sum(-(-count // floor) for count in blocks) <= num_steps:
                break
            floor += 1
        return levels - 1, floor

    def _step_s(self, rows: Rows[Sequence]) -> float:
        """Of a step in which all of these take part."""
        tokens = sum(_step_tokens(row) for row in rows)
        heads = sum(row.block_length / 2 for row in rows)
        return self.times.seconds(tokens, heads)

    def _least_steps(self, row: Sequence) -> int:
        """Until the row is done: at the utmost haste, if it may be hurried at all."""
        blocks = masks_left(row)
        if row.request.due_ns is not None:
            return len(blocks)
        known = self._paces.get(self._key(row, 0))
        pace = max(known.mean if known else self._scheduled(row), _SLOWEST)
        return sum(math.ceil(count / pace) for count in blocks)

    def _key(self, row: Sequence, level: int) -> tuple[Strategy, float, int]:
        return row.params.strategy, round(self._scheduled(row), 2), level

    @staticmethod
    def _scheduled(row: Sequence) -> float:
        """Positions of a step by the row's schedule, or what any rule fills at least."""
        return row.params.max_new_tokens / row.params.steps if row.params.steps else 1.0


def outcome(request: ResolvedRequest, outputs: Rows[Output], now_ns: int) -> dict[str, int]:
    """What Statistics counts of an answer's budget: a part of one is not in time."""
    if request.due_ns is None:
        return {}
    whole = all(output.finish_reason is not FinishReason.PARTIAL for output in outputs)
    return {"budgets_met" if whole and now_ns <= request.due_ns else "budgets_missed": 1}


def masks_left(row: Sequence) -> list[int]:
    """Of each block that has any, up to the first end token: what is behind it need not be filled."""
    open_positions = row.state[row.generated] == State.MASKED
    ids = row.ids[row.generated]
    if row.text.end_ids:
        ends = np.flatnonzero(np.isin(ids, list(row.text.end_ids)) & ~open_positions)
        if len(ends):
            open_positions[ends[0] :] = False
    counts = [int(open_positions[block].sum()) for block in row.blocks[row.block :]]
    return [count for count in counts if count]


def _step_tokens(row: Sequence) -> float:
    """What a step of the row computes, as far as can be told."""
    most = row.num_step_tokens
    return min(most, row.num_computed / row.step) if row.step else most
