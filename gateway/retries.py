"""Calls the model server again where that may help: after UNAVAILABLE, before anything was sent.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio

from .errors import is_unavailable, retry_delay_s

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIRST_WAIT_S = 0.1
_FACTOR = 4
# A server that wants a longer pause has told the client more than we could by waiting.
_LONGEST_WAIT_S = 2.0


class Retries:
    """At most `attempts` calls, the first one included, and none after the time limit."""

    def __init__(
        self, attempts: int, timeout_s: float | None, on_retry: Callable[[], None]
    ) -> None:
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._on_retry = on_retry

    async def call(self, attempt: Callable[[float | None], Awaitable[_T]]) -> _T:
        """What `attempt` returns. It gets the seconds that are left. Raises AioRpcError."""
        loop = asyncio.get_running_loop()
        end = None if self._timeout_s is None else loop.time() + self._timeout_s
        for done in range(1, self._attempts):
            try:
                return await attempt(None if end is None else end - loop.time())
            except grpc.aio.AioRpcError as error:
                wait_s = self._wait_s(error, done)
                if wait_s is None or (end is not None and loop.time() + wait_s >= end):
                    raise
                _log.info("calling the model server again", extra={"fields": {"attempt": done + 1}})
            self._on_retry()
            await asyncio.sleep(wait_s)
        return await attempt(None if end is None else end - loop.time())

    def _wait_s(self, error: grpc.aio.AioRpcError, done: int) -> float | None:
        if not is_unavailable(error):
            return None
        wanted_s = retry_delay_s(error) or 0.0
        # Full length to twice that: callers that failed together do not come back together.
        wait_s = max(wanted_s, _FIRST_WAIT_S * _FACTOR ** (done - 1)) * random.uniform(1, 2)
        return None if wanted_s > _LONGEST_WAIT_S else min(wait_s, _LONGEST_WAIT_S)
