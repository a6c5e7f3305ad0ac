"""The outbox joins what is ready, and makes writers wait for a slow reader."""

from __future__ import annotations

import asyncio

from gateway.sse import Outbox, encode


async def test_what_waits_is_taken_in_one_piece_and_in_order() -> None:
    outbox = Outbox()
    await outbox.put(b"a")
    await outbox.put(b"b")
    assert await outbox.take() == b"ab"
    await outbox.put(b"c")
    outbox.close()
    assert await outbox.take() == b"c"
    assert await outbox.take() == b""


async def test_a_taker_wakes_for_what_comes_and_for_the_end() -> None:
    outbox = Outbox()
    taken = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    await outbox.put(b"a")
    assert await taken == b"a"
    taken = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.close()
    assert await taken == b""


async def test_a_full_outbox_makes_its_writer_wait_until_it_is_read() -> None:
    outbox = Outbox(max_bytes=4)
    await outbox.put(b"12345")
    waiting = asyncio.create_task(outbox.put(b"6"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await outbox.take() == b"12345"
    await waiting
    assert await outbox.take() == b"6"


def test_an_event_is_one_line_of_data_whatever_the_text() -> None:
    assert encode([{"a": "x\n\ny\r"}, 1]) == b'data: {"a":"x\\n\\ny\\r"}\n\ndata: 1\n\n'
