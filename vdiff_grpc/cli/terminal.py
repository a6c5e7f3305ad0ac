"""Shows a canvas while it fills in: the pace, and plain lines. Knows neither gRPC nor colours.

`live.py` draws on a terminal what `PlainView` writes into pipes and files.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol, TextIO

from vdiff_grpc import v1
from vdiff_grpc.cli.words import Given, answer_title, asked, flat, printable, summary
from vdiff_grpc.client.canvas import Canvas, OutputCanvas

TICK_S = 0.04
END = "∎"
AFTER_END = "·"
OPENING, CLOSING = "[", "]"  # of a hole among given text


class View(Protocol):
    """Where a canvas is shown. All methods run on one thread.

    at_s: the time.monotonic() of what is shown. With a delay that is not now.
    """

    def apply(self, event: v1.StreamGenerateResponse, at_s: float) -> None:
        """Takes the next event."""

    def tick(self, at_s: float) -> None:
        """Time has passed."""

    def close(self) -> None:
        """No more events; leaves the screen in order, whatever happened."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters of one position, or of a given span.

    position: None for given text and the edges of a hole among it. state: "given" | "edge" |
    "masked" | "filled" | "end".
    """

    text: str
    state: str
    position: int | None = None
    confidence: float = 0.0


async def show(
    events: AsyncIterator[v1.StreamGenerateResponse], view: View, delay_s: float = 0.0
) -> None:
    """Shows all events, each step of the canvas for at least `delay_s`.

    The stream is read at its own pace whatever the delay: a server coalesces the steps of
    a slow reader.
    """
    queue: asyncio.Queue[tuple[v1.StreamGenerateResponse, float] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for event in events:
                queue.put_nowait((event, time.monotonic()))
        finally:
            queue.put_nowait(None)

    reader = asyncio.create_task(read())
    num_outputs = 1
    try:
        while True:
            try:
                read_event = await asyncio.wait_for(queue.get(), TICK_S)
            except TimeoutError:
                view.tick(time.monotonic())
                continue
            if read_event is None:
                break
            event, at_s = read_event
            view.apply(event, at_s)
            kind = event.WhichOneof("event")
            if kind == "started":
                num_outputs = max(1, event.started.resolved.sampling.n)
            if kind in ("step_update", "snapshot"):
                await _pause(view, delay_s / num_outputs, at_s)
        await reader
    finally:
        # The terminal first; then until the reader has let go of the stream.
        view.close()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class PlainView:
    """One line a step, then the text and a summary."""

    def __init__(self, out: TextIO, given: Given) -> None:
        self.canvas = Canvas()
        self._out = out
        self._given = given
        self._mask = "░" if _can_encode(out, "░") else "_"

    def apply(self, event: v1.StreamGenerateResponse, at_s: float = 0.0) -> None:
        output = self.canvas.apply(event)
        if event.HasField("started"):
            for line in asked(self.canvas, self._given):
                self._print(line)
        if output is not None and event.WhichOneof("event") in ("step_update", "snapshot"):
            self._print(self._line(output, event.step_update.hurried))
        if self.canvas.finished is not None:
            self._print("\n" + final_text(self.canvas, self._given))
            self._print("\n" + summary(self.canvas, self._given))

    def tick(self, at_s: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, output: OutputCanvas, hurried: bool) -> str:
        total = self.canvas.num_positions
        width = len(str(total))
        head = f"answer {output.index + 1}  " if len(self.canvas.outputs) > 1 else ""
        head += (
            f"step {output.step + 1:>{width}}  block {output.block + 1}"
            f"  filled {total - output.num_masked:>{width}}/{total}"
            f"  passes {output.forward_passes:>{width}}  "
        )
        head += "hurried  " if hurried else ""
        return head + "".join(
            self._mask if piece.state == "masked" else flat(piece.text)
            for piece in pieces(self.canvas, output, self._given)
        )

    def _print(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        safe = text.encode(encoding, "replace").decode(encoding)
        print(safe, file=self._out, flush=True)


def pieces(canvas: Canvas, output: OutputCanvas, given: Given) -> Iterator[Piece]:
    """One output's canvas in order, as what can be seen."""
    ended = False
    num_holes = 0
    # What is open in an answer that is whole is no part of it: a hole that grew less than it could.
    whole = output.end is not None and output.end.finish_reason != v1.FINISH_REASON_PARTIAL
    for kind, start, stop in canvas.spans:
        if kind not in (v1.SPAN_KIND_HOLE, v1.SPAN_KIND_SURPLUS):
            yield Piece(given.after(num_holes), "given")
            continue
        if has_edges := canvas.is_infill and kind == v1.SPAN_KIND_HOLE:
            yield Piece(OPENING, "edge")
        num_holes += kind == v1.SPAN_KIND_HOLE
        for position in range(start, stop):
            confidence = output.confidences[position]
            if output.masked[position]:
                if not (whole and canvas.is_infill):
                    yield Piece("", "masked", position)
            elif kind == v1.SPAN_KIND_SURPLUS:
                yield Piece(AFTER_END, "end", position, confidence)
            elif output.token_ids[position] in given.end_token_ids:
                yield Piece(AFTER_END if ended else END, "end", position, confidence)
                ended = True
            else:
                text = output.texts[position]
                yield Piece("�" if text is None else text, "filled", position, confidence)
        if has_edges:
            yield Piece(CLOSING, "edge")


def final_text(canvas: Canvas, given: Given) -> str:
    """The whole text of every output: what was given, and what was filled in."""
    texts = []
    for output in canvas.outputs:
        text = given.after(0) + "".join(
            filled + given.after(i + 1) for i, filled in enumerate(output.hole_texts)
        )
        title = answer_title(output.end, output.index) + "\n" if len(canvas.outputs) > 1 else ""
        texts.append(title + printable(text))
    return "\n".join(texts)


def num_blocks(started: v1.Started) -> int:
    """Blocks of one output."""
    kinds = (v1.SPAN_KIND_HOLE, v1.SPAN_KIND_SURPLUS)
    num_open = sum(s.length for s in started.layout.spans if s.kind in kinds)
    return math.ceil(num_open / max(1, started.resolved.diffusion.block_length))


async def _pause(view: View, delay_s: float, at_s: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + delay_s
    while (left_s := end - loop.time()) > 0:
        await asyncio.sleep(min(TICK_S, left_s))
        view.tick(at_s)


def _can_encode(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
