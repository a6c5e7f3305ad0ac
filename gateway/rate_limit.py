"""How many requests a caller may send: a sliding window each, in bounded memory.

Knows nothing of HTTP. Everything runs on the event loop.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

from vdiff_grpc.sliding_window import Clock, SlidingWindow

# A window holds some 100 bytes for each request of a minute.
_MAX_CALLERS = 4096
# Whoever has an IPv6 address mostly has all of its /64.
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands after its request.

    admitted: whether there was room for it. reset_s: until nothing of the window is used.
    retry_after_s: until there is room for one more; 0 when there is.
    """

    admitted: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class RateLimits:
    """The windows of the callers that were heard of in the last minute.

    Of more than `max_callers` the one not heard of for longest is forgotten.
    """

    def __init__(self, clock: Clock = time.monotonic_ns, max_callers: int = _MAX_CALLERS) -> None:
        self._clock = clock
        self._max_callers = max_callers
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, caller: str, limit: int) -> Standing:
        """Counts one request of the caller, if fewer than `limit` came in the last minute."""
        window = self._windows.get(caller)
        if window is None:
            self._forget_idle()
            window = self._windows[caller] = SlidingWindow(limit, self._clock)
            if len(self._windows) > self._max_callers:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(caller)
            window.limit = limit
        admitted = window.wait_ns(1) == 0
        if admitted:
            window.take(1)
        wait_ns = window.wait_ns(1)
        return Standing(
            admitted,
            limit,
            max(limit - window.used, 0),
            window.reset_ns / 1e9,
            wait_ns / 1e9,
        )

    def _forget_idle(self) -> None:
        while self._windows:
            window = next(iter(self._windows.values()))
            if window.used:
                return
            self._windows.popitem(last=False)


def network_of(address: str) -> str:
    """What stands for a client's address: itself, of IPv6 its /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket's, or a proxy's own name for a client
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX), strict=False))
    return str(parsed)
