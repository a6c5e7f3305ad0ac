"""What the engine is doing this moment, in memory that its process shares with the server's.

Readable while the engine hangs, and after it was killed. Knows neither requests nor processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from multiprocessing.context import BaseContext

_BEGAN, _COUNT, _KEYS = 0, 1, 2


class Pulse:
    """Written by the engine's loop, read by whoever watches it.

    max_keys: so many of a step's requests are told at most.
    """

    def __init__(self, context: BaseContext, max_keys: int) -> None:
        self._max_keys = max_keys
        self._numbers = context.RawArray("q", _KEYS + max_keys)

    def begin(self, keys: Iterable[int]) -> None:
        """A step begins, with the requests of these keys; called again, it goes on with others."""
        told = sorted(set(keys))[: self._max_keys]
        self._numbers[_COUNT] = 0
        self._numbers[_KEYS : _KEYS + len(told)] = told
        self._numbers[_COUNT] = len(told)
        self._numbers[_BEGAN] = self._numbers[_BEGAN] or time.monotonic_ns()

    def end(self) -> None:
        """The step is over."""
        self._numbers[_BEGAN] = 0
        self._numbers[_COUNT] = 0

    @property
    def step_s(self) -> float:
        """Seconds since the present step began; 0 between steps."""
        began = self._numbers[_BEGAN]
        return (time.monotonic_ns() - began) / 1e9 if began else 0.0

    @property
    def keys(self) -> frozenset[int]:
        """The requests of the present step, or of the last one of an engine that has died in it."""
        return frozenset(self._numbers[_KEYS : _KEYS + self._numbers[_COUNT]])
