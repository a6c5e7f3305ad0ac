"""How long the next step may take, judged by recent ones. Knows no requests."""

from __future__ import annotations

# An answer also has to leave the process, pass the event loop and reach the caller.
_DELIVERY_NS = 50_000_000
_FORGET = 0.9


class Pace:
    """The slowest recent step, slowly forgotten."""

    def __init__(self) -> None:
        self._slowest_ns = 0.0

    def note(self, step_ns: int) -> None:
        self._slowest_ns = max(float(step_ns), _FORGET * self._slowest_ns)

    @property
    def margin_ns(self) -> int:
        """What must be left before a deadline for one more step and the answer's way."""
        return _DELIVERY_NS + round(1.5 * self._slowest_ns)
