"""One HTTP exchange's end before its time: the client leaves, or the gateway shuts down.

Knows neither OpenAI's objects nor the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from starlette.types import Receive

from .errors import ApiError, ClientGoneError, shutting_down

_T = TypeVar("_T")


class OpenExchanges:
    """All exchanges that are being answered; lives as long as the gateway."""

    def __init__(self) -> None:
        self._open: set[Exchange] = set()

    def add(self, exchange: Exchange) -> None:
        self._open.add(exchange)

    def discard(self, exchange: Exchange) -> None:
        self._open.discard(exchange)

    def end_all(self) -> None:
        """The time to finish is over: every open exchange is answered with 503."""
        for exchange in self._open:
            exchange.end(shutting_down())


class Exchange:
    """`async with Exchange(...) as exchange: await exchange.run(work)`.

    The request's body must have been read: from then on the client can only leave.
    """

    def __init__(self, receive: Receive, open_exchanges: OpenExchanges) -> None:
        self._receive = receive
        self._open = open_exchanges
        self._end: ApiError | ClientGoneError | None = None
        self._working: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def __aenter__(self) -> Exchange:
        self._open.add(self)
        self._watch = asyncio.get_running_loop().create_task(self._watch_client())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.discard(self)
        self._watch.cancel()

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; cancels it and raises when the exchange ends before.

        Like asyncio.timeout it needs no task for the work, which would cost more than it does.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._end is not None:
            work.close()
            raise self._end
        others = task.cancelling()
        self._working = task
        try:
            return await work
        except asyncio.CancelledError:
            if task.cancelling() - self._cancelled > others:
                raise  # not by us
            # Without a reason its RPC was cancelled under it: the channel is closed.
            raise self._reason() or shutting_down() from None
        finally:
            self._working = None
            if self._cancelled:
                self._cancelled = False
                task.uncancel()

    def end(self, reason: ApiError | ClientGoneError) -> None:
        """Before its time; what runs is cancelled and raises the reason."""
        if self._end is None:
            self._end = reason
            if self._working is not None:
                self._cancelled = True
                self._working.cancel()

    def _reason(self) -> ApiError | ClientGoneError | None:
        return self._end

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGoneError())
