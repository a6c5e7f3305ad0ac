"""How long a step of a given size takes, learnt from those that were. Knows no requests."""

from __future__ import annotations

import numpy as np

_FORGET = 0.995  # of what was seen, from one step to the next
_RECENT = 0.1  # weight of the last step in what is known of the present
_MOST = 4.0  # times what was predicted: more than that is taken for an accident
_TRUSTED_STEPS = 8
_SMALL = 64.0  # tokens up to which a step's error counts alike

# Where all steps were of one size, time is taken to be in proportion to the tokens.
_DOUBT = np.diag([1e-3, 1e-9, 1e-4])


class StepTimes:
    """Time = a + b * packed tokens + c * head rows, none below 0: more never takes less.

    Weighted least squares with forgetting. A machine that has become slower or faster is followed
    at once by a factor on the whole; a single step that took very long moves little.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self._moments = np.zeros((3, 3))
        self._targets = np.zeros(3)
        self._coefficients: tuple[float, float, float] | None = None
        self._drift = 1.0
        self._deviation = 0.0

    def note(self, tokens: float, head_rows: float, seconds: float) -> None:
        """A step of this size took so long."""
        if self.num_steps >= _TRUSTED_STEPS:
            fitted = self._fitted(tokens, head_rows)
            seconds = min(seconds, _MOST * fitted * self._drift)
            ratio = seconds / fitted
            self._deviation += _RECENT * (abs(ratio / self._drift - 1) - self._deviation)
            self._drift += _RECENT * (ratio - self._drift)
        size = np.array([1.0, tokens, head_rows])
        weight = (tokens + _SMALL) ** -2
        self._moments = _FORGET * self._moments + weight * np.outer(size, size)
        self._targets = _FORGET * self._targets + weight * seconds * size
        self._coefficients = None
        self.num_steps += 1

    def seconds(self, tokens: float, head_rows: float) -> float:
        """Of a step of this size, a typical error added; 0 while nothing was seen."""
        if not self.num_steps:
            return 0.0
        return self._fitted(tokens, head_rows) * self._drift * (1 + self._deviation)

    def _fitted(self, tokens: float, head_rows: float) -> float:
        if self._coefficients is None:
            self._coefficients = self._solved()
        base, by_token, by_head = self._coefficients
        return max(base + by_token * tokens + by_head * head_rows, 1e-9)

    def _solved(self) -> tuple[float, float, float]:
        """What is best with a coefficient below 0 is better without it."""
        used = [0, 1, 2]
        scale = np.sqrt(np.maximum(np.diag(self._moments), 1e-30))
        moments = self._moments / np.outer(scale, scale) + _DOUBT
        while True:
            part = np.linalg.solve(moments[np.ix_(used, used)], (self._targets / scale)[used])
            if len(used) == 1 or part.min() >= 0:
                break
            used.pop(int(part.argmin()))
        found = np.zeros(3)
        found[used] = np.maximum(part, 0.0)
        base, by_token, by_head = (found / scale).tolist()
        return base, by_token, by_head
