"""Requests that end the engine's process are kept from ending it again and again.

Known by a digest of their content. When the engine dies in a step of its own doing, the step's
requests are suspects; one that was alone in it, or was there twice, is refused for a while. Until
then suspects are run one at a time, so that the innocent are not there twice. Knows no engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from vdiff_grpc.errors import QuarantinedError

_MAX_SUSPECTS = 4096


class Quarantine:
    """On the event loop. duration_s: 0 blames nobody."""

    def __init__(self, duration_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.one_at_a_time = asyncio.Lock()
        self._duration_s = duration_s
        self._clock = clock
        self._suspects: dict[bytes, float] = {}  # until when; oldest first
        self._guilty: dict[bytes, float] = {}

    def refuse_guilty(self, content: bytes) -> None:
        """Raises QuarantinedError."""
        self._forget()
        until = self._guilty.get(content)
        if until is not None:
            raise QuarantinedError(
                "this request has ended the engine's process; it is refused for another "
                f"{max(0.0, until - self._clock()):.0f} s (quarantine_s {self._duration_s:g})"
            )

    def is_suspect(self, content: bytes) -> bool:
        self._forget()
        return content in self._suspects

    def blame(self, contents: Iterable[bytes]) -> None:
        """The engine has died in a step of these."""
        if not self._duration_s:
            return
        self._forget()
        present = set(contents)
        until = self._clock() + self._duration_s
        for content in present:
            again = self._suspects.pop(content, None) is not None
            (self._guilty if again or len(present) == 1 else self._suspects)[content] = until
        for known in (self._suspects, self._guilty):
            while len(known) > _MAX_SUSPECTS:
                del known[next(iter(known))]

    def acquit(self, content: bytes) -> None:
        """It has been answered."""
        self._suspects.pop(content, None)

    def _forget(self) -> None:
        now = self._clock()
        for known in (self._suspects, self._guilty):
            while known and known[first := next(iter(known))] <= now:
                del known[first]
