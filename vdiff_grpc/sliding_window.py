"""A sliding window: at most so many units in any stretch of time of one length, wherever it begins.

Exact, and in memory. Knows neither callers nor calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MINUTE_NS = 60 * 10**9

Clock = Callable[[], int]  # nanoseconds, never going back


@dataclass(slots=True)
class Taken:
    """One admission. Its amount may be corrected for as long as the window holds it."""

    time_ns: int
    amount: int
    held: bool = True


class SlidingWindow:
    """At most `limit` units in any `length_ns`."""

    def __init__(self, limit: int, clock: Clock, length_ns: int = MINUTE_NS) -> None:
        self.limit = limit
        self._clock = clock
        self._length_ns = length_ns
        self._taken: deque[Taken] = deque()
        self._sum = 0

    @property
    def used(self) -> int:
        self._forget()
        return self._sum

    @property
    def reset_ns(self) -> int:
        """Until nothing is used any more, if nothing else is taken."""
        self._forget()
        if not self._taken:
            return 0
        return self._taken[-1].time_ns + self._length_ns - self._clock()

    def wait_ns(self, amount: int) -> int:
        """0 when there is room for `amount` now, else how long until there is.

        amount: at most `limit`; more never has room.
        """
        self._forget()
        over = self._sum + amount - self.limit
        if over <= 0:
            return 0
        for taken in self._taken:
            over -= taken.amount
            if over <= 0:
                return taken.time_ns + self._length_ns - self._clock()
        raise ValueError(f"{amount} is more than the window's limit {self.limit}")

    def take(self, amount: int) -> Taken:
        """Counts `amount` from now on, whether or not there is room."""
        taken = Taken(self._clock(), amount)
        self._taken.append(taken)
        self._sum += amount
        return taken

    def correct(self, taken: Taken, amount: int) -> None:
        """Says what was really used of what was taken."""
        if taken.held:
            self._sum += amount - taken.amount
            taken.amount = amount

    def _forget(self) -> None:
        now_ns = self._clock()
        while self._taken and self._taken[0].time_ns + self._length_ns <= now_ns:
            gone = self._taken.popleft()
            gone.held = False
            self._sum -= gone.amount
