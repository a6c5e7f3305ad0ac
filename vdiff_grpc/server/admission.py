"""What is held at once: rows, canvas tokens, calls of each caller. Refuses what goes beyond.

Knows neither requests nor the engine. Everything runs on the event loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vdiff_grpc.errors import CallerLimitError, QueueFullError

_MAX_RETRY_AFTER_S = 30.0
_FORGET = 0.2


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """As in ServerConfig; 0 is no limit for calls and tokens."""

    max_running_rows: int
    max_waiting_rows: int
    max_calls_per_caller: int = 0
    max_tokens_in_flight: int = 0


class Admission:
    """Counts. Whoever takes a place gives it back."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.num_refused = 0
        self.rows = 0
        self.tokens = 0
        self._limits = limits
        self._calls: Counter[str] = Counter()
        self._mean_service_s = 1.0

    def open_call(self, caller: str) -> None:
        """Raises CallerLimitError."""
        limit = self._limits.max_calls_per_caller
        if limit and self._calls[caller] >= limit:
            self.num_refused += 1
            what = f"{self._calls[caller]} calls of this caller are open (max_calls_per_caller {limit})"
            raise CallerLimitError(what, "calls", self.retry_after_s)
        self._calls[caller] += 1

    def close_call(self, caller: str) -> None:
        self._calls[caller] -= 1
        if not self._calls[caller]:
            del self._calls[caller]

    def take_rows(self, count: int) -> None:
        """Raises QueueFullError."""
        running, waiting = self._limits.max_running_rows, self._limits.max_waiting_rows
        if self.rows + count > running + waiting:
            self.num_refused += 1
            raise QueueFullError(
                f"no place for {count} more rows beside {self.rows} "
                f"(max_running_rows {running} + max_waiting_rows {waiting})",
                self.retry_after_s,
            )
        self.rows += count

    def give_rows(self, count: int) -> None:
        self.rows -= count

    def take_tokens(self, count: int) -> None:
        """Raises CallerLimitError. A request beyond the limit goes through when nothing is held."""
        limit = self._limits.max_tokens_in_flight
        if limit and self.tokens and self.tokens + count > limit:
            self.num_refused += 1
            raise CallerLimitError(
                f"no place for {count} more canvas tokens beside {self.tokens} "
                f"(max_tokens_in_flight {limit})",
                "tokens",
                self.retry_after_s,
            )
        self.tokens += count

    def give_tokens(self, count: int) -> None:
        self.tokens -= count

    def note_service(self, seconds: float) -> None:
        """A request was served in so long, waiting left out."""
        self._mean_service_s += _FORGET * (seconds - self._mean_service_s)

    @property
    def retry_after_s(self) -> float:
        """A guess: with all rows busy one ends about every mean / rows seconds."""
        next_end_s = self._mean_service_s / self._limits.max_running_rows
        return min(_MAX_RETRY_AFTER_S, max(0.1, next_end_s))
