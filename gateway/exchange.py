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
        self._ended: set[asyncio.Future[ApiError | ClientGoneError]] = set()

    def add(self, ended: asyncio.Future[ApiError | ClientGoneError]) -> None:
        self._ended.add(ended)

    def discard(self, ended: asyncio.Future[ApiError | ClientGoneError]) -> None:
        self._ended.discard(ended)

    def end_all(self) -> None:
        """The time to finish is over: every open exchange is answered with 503."""
        for ended in self._ended:
            if not ended.done():
                ended.set_result(shutting_down())


class Exchange:
    """`async with Exchange(...) as exchange: await exchange.run(work)`.

    The request's body must have been read: from then on the client can only leave.
    """

    def __init__(self, receive: Receive, open_exchanges: OpenExchanges) -> None:
        self._receive = receive
        self._open = open_exchanges

    async def __aenter__(self) -> Exchange:
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ApiError | ClientGoneError] = loop.create_future()
        self._open.add(self._ended)
        self._watch = loop.create_task(self._watch_client())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.discard(self._ended)
        self._watch.cancel()

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; cancels it and raises when the exchange ends before."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait((task, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                if task.cancelled():  # its RPC was cancelled under it: the channel is closed
                    raise shutting_down()
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        raise self._ended.result()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended.done():
            self._ended.set_result(ClientGoneError())
