"""How much a request with a latency budget is hurried, so as to be in time. Knows no tensors.

Before each step it is forecast how long the coming ones take: who is there, when each will be done,
who will have come by then. The least level of haste at which all with a budget would be in time is
everyone's; a row that gets on worse than the others is hurried more, and at its last chance fills
the whole block. Rows without a budget are never touched.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

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

# Confidences from which on a prediction is filled as well, by rising haste. Few: with more of them,
# closer together, haste begins later and costs more (measured).
LEVELS = (0.9, 0.7, 0.5, 0.3)
_KEPT_BACK = 0.1  # of the time that is left: others may come
_RECENT = 0.05  # weight of one step in a level's pace, at the least
_NEW = 0.1  # weight of one budget in the horizon
_SLOWEST = 0.25  # positions of a step: some fill none at first
_BELIEF = 4.0  # positions for which a row is believed to be like the others
_MAX_PACES = 1024
_MAX_AHEAD = 128  # waiting rows that are thought of, those due first
_HORIZON = 2.0  # budgets: the time over which arrivals are counted
_UNMASK = int(Action.UNMASK)


@dataclass(slots=True)
class _Progress:
    """Of one row: positions filled, and what their levels' paces had promised."""

    filled: float = _BELIEF
    promised: float = _BELIEF


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A row that has steps ahead.

    blocks: masks of each. left_s: until it is due. reading: steps until its prompt is read. paces:
    positions of a step at each level.
    """

    row: Sequence
    blocks: list[int]
    left_s: float
    reading: int
    paces: list[float]

    def steps(self, level: int, own: float = 1.0) -> int:
        """Those that fill it; own: how it gets on beside others."""
        pace = max(own * self.paces[level if self.left_s < math.inf else 0], _SLOWEST)
        return sum(math.ceil(count / pace) for count in self.blocks)


class _Arrivals:
    """How many rows come in a second, of late."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at_ns = 0
        self._horizon_s = 1.0

    def note(self, num_rows: int, budget_s: float | None, now_ns: int) -> None:
        self._decay(now_ns)
        self._count += num_rows
        if budget_s is not None:
            self._horizon_s += _NEW * (_HORIZON * budget_s - self._horizon_s)

    def rate(self, now_ns: int) -> float:
        self._decay(now_ns)
        return self._count / self._horizon_s

    def _decay(self, now_ns: int) -> None:
        self._count *= math.exp((self._at_ns - now_ns) / 1e9 / self._horizon_s)
        self._at_ns = now_ns


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
        self._fresh: WeakKeyDictionary[Sequence, tuple[int, list[int]]] = WeakKeyDictionary()
        self._head_rows = 0
        self._arrivals = _Arrivals()

    def admit(self, rows: Rows[Sequence], scheduler: Scheduler, now_ns: int) -> None:
        """Raises BudgetError for what would be late at the utmost haste, if that is the policy."""
        request = rows[0].request
        if self._refuses and request.due_ns is not None and self.times.num_steps:
            self._check(rows, request.due_ns, scheduler, now_ns)
        budget_s = None if request.due_ns is None else (request.due_ns - request.arrival_ns) / 1e9
        self._arrivals.note(len(rows), budget_s, now_ns)

    def _check(self, rows: Rows[Sequence], due_ns: int, scheduler: Scheduler, now_ns: int) -> None:
        held = [*scheduler.running, *scheduler.queued]
        places = scheduler.places([*held, *rows])
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
        if len(waiting) > _MAX_AHEAD:
            waiting = heapq.nsmallest(_MAX_AHEAD, waiting, key=lambda row: row.request.due_ns or 0)
        held = [*scheduler.running, *waiting]
        paces: dict[tuple[Strategy, float], list[float]] = {}
        ahead = {row: self._ahead(row, scheduler, paces, now_ns) for row in held}
        level, ends = self._forecast(list(ahead.values()), scheduler.places(held), now_ns)
        for row in hurried:
            one = ahead[row]
            num_steps = float(np.searchsorted(ends, one.left_s, side="right"))
            if num_steps == len(ends):  # and then as before
                last_s = float(ends[-1]) / len(ends)
                num_steps += (one.left_s - float(ends[-1])) / last_s if last_s else math.inf
            self._hurry(one, level, num_steps - one.reading)

    def _ahead(
        self,
        row: Sequence,
        scheduler: Scheduler,
        paces: dict[tuple[Strategy, float], list[float]],
        now_ns: int,
    ) -> _Ahead:
        due_ns = row.request.due_ns
        left_s = math.inf if due_ns is None else (due_ns - now_ns) / 1e9 * (1 - _KEPT_BACK)
        reading = row.num_pages_ahead * row.page_tokens / scheduler.max_prompt_step_tokens
        kind = row.params.strategy, self._scheduled(row)
        if kind not in paces:
            paces[kind] = self._paces_of(row)
        return _Ahead(row, self._blocks(row), left_s, math.ceil(reading), paces[kind])

    def _forecast(
        self, ahead: Rows[_Ahead], places: int, now_ns: int
    ) -> tuple[int, npt.NDArray[np.float64]]:
        """The least level at which all would be in time; and in how many seconds each step ends.

        Where not all have a place, a step stands for the several in which each has had its turn.
        """
        base = self.times.seconds(0, 0)
        each = (self._step_s([one.row for one in ahead]) - base) / len(ahead)
        rate = self._arrivals.rate(now_ns) * (base + each * len(ahead))  # new rows of a step

        def ends_at(level: int) -> tuple[bool, npt.NDArray[np.float64]]:
            steps = np.array([max(1, one.reading + one.steps(level)) for one in ahead])
            present = len(ahead) - np.cumsum(np.bincount(steps))[:-1]
            # who comes stays as long as the others do
            present = present + rate * np.minimum(np.arange(len(present)), steps.mean())
            ends = np.cumsum(base * np.ceil(present / places) + each * present)
            return bool((ends[steps - 1] <= [one.left_s for one in ahead]).all()), ends

        low, high = 0, len(LEVELS)
        while low < high:
            level = (low + high) // 2
            if ends_at(level)[0]:
                high = level
            else:
                low = level + 1
        return low, ends_at(low)[1]

    def _hurry(self, one: _Ahead, level: int, num_steps: float) -> None:
        """At this level, or as much more as it takes to be done in so many steps."""
        row, blocks = one.row, one.blocks
        progress = self._progress.get(row)
        own = progress.filled / progress.promised if progress else 1.0
        floor = 0
        if isinstance(row.params.strategy, LeftToRight):
            level, floor = 0, _least_floor(blocks, num_steps)
        else:
            while level < len(LEVELS) and one.steps(level, own) > num_steps:
                level += 1
            # a pace is no promise: who has a step for each block, and none to spare, fills it
            spare = num_steps - len(blocks)
            if blocks and (
                spare < 1 or (spare < len(blocks) and one.steps(level, own) > num_steps)
            ):
                floor = blocks[0]
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

    def _paces_of(self, row: Sequence) -> list[float]:
        """Of a row's kind at each level, as far as known; never falling."""
        paces = [_SLOWEST]
        for level in range(len(LEVELS) + 1):
            guess = max(paces[-1], 1 + 0.75 * level) if level else self._scheduled(row)
            known = self._paces.get(self._key(row, level))
            paces.append(max(paces[-1], known.mean if known else guess))
        return paces[1:]

    def _blocks(self, row: Sequence) -> list[int]:
        """Masks left; of a row that waits they need not be counted each time."""
        if row.step:
            return masks_left(row)
        known = self._fresh.get(row)
        if known is None or known[0] != len(row.generated):  # a hole's length is chosen late
            known = self._fresh[row] = len(row.generated), masks_left(row)
        return known[1]

    def _step_s(self, rows: Rows[Sequence]) -> float:
        """Of a step in which all of these take part."""
        tokens = sum(_step_tokens(row) for row in rows)
        heads = sum(row.block_length / 2 for row in rows)
        return self.times.seconds(tokens, heads)

    def _least_steps(self, row: Sequence) -> int:
        """Until the row is done: at the utmost haste, if it may be hurried at all."""
        blocks = self._blocks(row)
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


def _least_floor(blocks: list[int], num_steps: float) -> int:
    """Positions of a step by which all are filled in so many; 0: one at a time will do."""
    floor = 1
    while floor < max(blocks, default=1):
        if sum(-(-count // floor) for count in blocks) <= num_steps:
            break
        floor += 1
    return floor if floor > 1 else 0


def _step_tokens(row: Sequence) -> float:
    """What a step of the row computes, as far as can be told."""
    most = row.num_step_tokens
    return min(most, row.num_computed / row.step) if row.step else most
