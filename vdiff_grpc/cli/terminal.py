"""Shows a canvas while it fills in: the pace, and plain lines. Knows neither gRPC nor colours.

`live.py` draws on a terminal what `PlainView` writes into pipes and files.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol, TextIO

from vdiff_grpc import v1
from vdiff_grpc.client.canvas import Canvas, OutputCanvas

TICK_S = 0.04
NEWLINE = "↵"
END = "∎"
AFTER_END = "·"


@dataclass(frozen=True, slots=True)
class Given:
    """What the stream does not say in words: the caller's own text, and the model's end tokens."""

    prompt: str = ""
    suffix: str = ""
    end_token_ids: frozenset[int] = frozenset()


class View(Protocol):
    """Where a canvas is shown. All methods run on one thread."""

    def apply(self, event: v1.StreamGenerateResponse) -> None:
        """Takes the next event."""

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """No more events; leaves the screen in order, whatever happened."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters of one position, or of a given span.

    position: None for given text. state: "given" | "masked" | "filled" | "end".
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
    queue: asyncio.Queue[v1.StreamGenerateResponse | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for event in events:
                queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    reader = asyncio.create_task(read())
    num_outputs = 1
    try:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), TICK_S)
            except TimeoutError:
                view.tick()
                continue
            if event is None:
                break
            view.apply(event)
            kind = event.WhichOneof("event")
            if kind == "started":
                num_outputs = max(1, event.started.resolved.sampling.n)
            if kind in ("step_update", "snapshot"):
                await _pause(view, delay_s / num_outputs)
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

    def apply(self, event: v1.StreamGenerateResponse) -> None:
        output = self.canvas.apply(event)
        if output is not None and event.WhichOneof("event") in ("step_update", "snapshot"):
            self._print(self._line(output))
        if self.canvas.finished is not None:
            self._print("\n" + final_text(self.canvas, self._given))
            self._print("\n" + summary(self.canvas))

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, output: OutputCanvas) -> str:
        total = self.canvas.num_positions
        width = len(str(total))
        head = f"answer {output.index + 1}  " if len(self.canvas.outputs) > 1 else ""
        head += (
            f"step {output.step + 1:>{width}}  block {output.block + 1}"
            f"  filled {total - output.num_masked:>{width}}/{total}"
            f"  passes {output.forward_passes:>{width}}  "
        )
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
    for kind, start, stop in canvas.spans:
        if kind not in (v1.SPAN_KIND_HOLE, v1.SPAN_KIND_SURPLUS):
            yield Piece(given.prompt if kind == v1.SPAN_KIND_PROMPT else given.suffix, "given")
            continue
        for position in range(start, stop):
            confidence = output.confidences[position]
            if output.masked[position]:
                yield Piece("", "masked", position)
            elif kind == v1.SPAN_KIND_SURPLUS:
                yield Piece(AFTER_END, "end", position, confidence)
            elif output.token_ids[position] in given.end_token_ids:
                yield Piece(AFTER_END if ended else END, "end", position, confidence)
                ended = True
            else:
                text = output.texts[position]
                yield Piece("�" if text is None else text, "filled", position, confidence)


def flat(text: str) -> str:
    """One line, and no control character that could move a terminal's cursor."""
    return printable(text).replace("\n", NEWLINE)


def printable(text: str) -> str:
    """The text without control characters other than the newline; a tab is a space."""
    return "".join(
        char if char == "\n" or char.isprintable() else " " if char.isspace() else "�"
        for char in text
    )


def final_text(canvas: Canvas, given: Given) -> str:
    """The whole text of every output: what was given, and what was filled in."""
    texts = []
    for output in canvas.outputs:
        hole_texts = iter(output.hole_texts)
        text = "".join(
            next(hole_texts)
            if kind == v1.SPAN_KIND_HOLE
            else given.prompt
            if kind == v1.SPAN_KIND_PROMPT
            else given.suffix
            for kind, _, _ in canvas.spans
            if kind != v1.SPAN_KIND_SURPLUS
        )
        title = f"--- answer {output.index + 1} ---\n" if len(canvas.outputs) > 1 else ""
        texts.append(title + printable(text))
    return "\n".join(texts)


def summary(canvas: Canvas) -> str:
    """Two lines: what it cost, and how it ended."""
    finished = canvas.finished
    assert finished is not None
    metrics = finished.metrics
    cost = (
        count(finished.usage.completion_tokens, "token"),
        count(metrics.forward_passes, "forward pass", "forward passes"),
        f"{metrics.tokens_per_forward:.2f} tokens per forward",
        *([f"{metrics.remasked} masked again"] if metrics.remasked else []),
        *([f"{metrics.revised} revised"] if metrics.revised else []),
        f"{metrics.total_time_ns / 1e9:.2f} s",
    )
    ends = dict.fromkeys(end_reason(end) for end in finished.ends)
    seeds = [str(end.seed) for end in finished.ends]
    end = (f"ended by {', '.join(ends)}", f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    return " · ".join(cost) + "\n" + " · ".join(end)


def end_reason(end: v1.OutputEnd) -> str:
    """How an output ended, in a few words."""
    if end.finish_reason == v1.FINISH_REASON_LENGTH:
        return "length"
    if end.WhichOneof("stop_match") == "stop_string":
        return f"stop string {end.stop_string!r}"
    if end.WhichOneof("stop_match") == "stop_token_id":
        return f"stop token {end.stop_token_id}"
    return "end of text"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 token`, `2 tokens`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def num_blocks(started: v1.Started) -> int:
    """Blocks of one output."""
    kinds = (v1.SPAN_KIND_HOLE, v1.SPAN_KIND_SURPLUS)
    num_open = sum(s.length for s in started.layout.spans if s.kind in kinds)
    return math.ceil(num_open / max(1, started.resolved.diffusion.block_length))


async def _pause(view: View, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + delay_s
    while (left_s := end - loop.time()) > 0:
        await asyncio.sleep(min(TICK_S, left_s))
        view.tick()


def _can_encode(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
