"""Writes server-sent events: encodes chunks, and joins what is ready into one write.

Knows neither OpenAI's objects nor the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would hold events back.
    (b"x-accel-buffering", b"no"),
)

_ENCODER = msgspec.json.Encoder()


def encode(chunks: Iterable[Any]) -> bytes:
    """One event per chunk."""
    encoded = _ENCODER.encode
    return b"".join([b"data: %b\n\n" % encoded(chunk) for chunk in chunks])


def encode_named(events: Iterable[msgspec.Struct]) -> bytes:
    """One event per tagged struct, with the tag as its name."""
    encoded = _ENCODER.encode
    return b"".join(
        [
            b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), encoded(event))
            for event in events
        ]
    )


class Outbox:
    """Events between the RPCs that make them and the one task that writes them.

    Bounded: when the client reads too slowly `put` waits, the RPC is no longer read, and the
    server coalesces what it has to say.
    """

    def __init__(self, max_bytes: int = 256 * 1024) -> None:
        self._max_bytes = max_bytes
        self._waiting: list[bytes] = []
        self._num_bytes = 0
        self._closed = False
        self._ready = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        while self._num_bytes > self._max_bytes:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(data)
        self._num_bytes += len(data)
        self._ready.set()

    def close(self) -> None:
        """Nothing will be put any more."""
        self._closed = True
        self._ready.set()

    async def take(self) -> bytes:
        """All that waits, joined; empty after the end."""
        while not self._waiting and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._num_bytes = 0
        self._room.set()
        return data
