"""How much a caller may ask in a minute: sliding windows of requests and of tokens.

Exact: in no 60 seconds, wherever they begin, is more admitted than the limit. What was refused
does not count. Knows no gRPC; everything runs on the event loop.
"""

from __future__ import annotations

import time

from vdiff_grpc.errors import FieldViolation, InvalidRequestError, RateLimitError
from vdiff_grpc.keys import KeyEntry
from vdiff_grpc.sliding_window import Clock, SlidingWindow, Taken


class Allowance:
    """What one call may use of its caller's tokens. Without a window: all it likes."""

    def __init__(self, name: str = "", window: SlidingWindow | None = None) -> None:
        self._name = name
        self._window = window
        self._taken: Taken | None = None
        self._settled = False

    def charge(self, num_tokens: int) -> None:
        """Takes the most that the request can use: its prompt and all it may generate.

        Raises RateLimitError, or InvalidRequestError when it could never have so much.
        """
        if self._window is None:
            return
        limit = self._window.limit
        if num_tokens > limit:
            what = (
                f"prompt and max_new_tokens of all answers ({num_tokens} tokens) exceed the "
                f"{limit} tokens per minute of key {self._name}"
            )
            raise InvalidRequestError([FieldViolation("sampling.max_new_tokens", what)])
        if wait_ns := self._window.wait_ns(num_tokens):
            raise _refusal(self._name, "tokens", self._window, num_tokens, wait_ns)
        self._taken = self._window.take(num_tokens)

    def settle(self, num_tokens: int) -> None:
        """Says what was used; may be said again, and after the call's end."""
        self._settled = True
        if self._window is not None and self._taken is not None:
            self._window.correct(self._taken, num_tokens)

    def refund(self) -> None:
        """Gives everything back, unless it has been said what was used."""
        if not self._settled:
            self.settle(0)


class RateLimits:
    """The windows of all callers, by name: they outlive a change of key or limit."""

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], SlidingWindow] = {}

    def take_request(self, entry: KeyEntry) -> None:
        """Counts one request. Raises RateLimitError."""
        window = self._window(entry.name, "requests", entry.requests_per_minute)
        if window is None:
            return
        if wait_ns := window.wait_ns(1):
            raise _refusal(entry.name, "requests", window, 1, wait_ns)
        window.take(1)

    def allowance(self, entry: KeyEntry) -> Allowance:
        window = self._window(entry.name, "tokens", entry.tokens_per_minute)
        return Allowance(entry.name, window)

    def _window(self, name: str, unit: str, limit: int | None) -> SlidingWindow | None:
        if limit is None:
            self._windows.pop((name, unit), None)
            return None
        window = self._windows.setdefault((name, unit), SlidingWindow(limit, self._clock))
        window.limit = limit
        return window


def _refusal(
    name: str, unit: str, window: SlidingWindow, amount: int, wait_ns: int
) -> RateLimitError:
    # Up to whole milliseconds: whoever waits so long finds room.
    retry_after_s = -(-wait_ns // 10**6) / 1e3
    return RateLimitError(
        f"key {name} has {window.limit} {unit} per minute, of which {window.used} are used: no "
        f"room for {amount} more",
        retry_after_s,
        f"{unit}_per_minute:{name}",
    )
