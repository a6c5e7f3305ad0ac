"""Draws a canvas on a terminal while it fills in, coloured by confidence. Needs rich.

A masked position is a dim block, a fresh one flashes, a filled one goes from red
(unsure) over yellow to green (sure). Holes among given text have edges, and their length.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vdiff_grpc import v1
from vdiff_grpc.cli.terminal import AFTER_END, CLOSING, Piece, final_text, num_blocks, pieces
from vdiff_grpc.cli.words import (
    NEWLINE,
    Given,
    constraint_words,
    count,
    hole_words,
    printable,
    score_words,
    summary,
)
from vdiff_grpc.client.canvas import Canvas, OutputCanvas

# About as wide as a token, so that the text moves little while it fills in.
MASK = " ░░░"
SMALL_MASK = "░"
MAX_WIDE_MASKS = 256
MAX_WIDTH = 110
MIN_LEGEND_WIDTH = 64
FLASH_S = 0.2
FRAME_S = 1 / 30

_RED, _YELLOW, _GREEN = (226, 84, 84), (222, 186, 72), (92, 190, 108)
_GIVEN = Style(bold=True)
_EDGE = Style(color="cyan")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
BAR_WIDTH = 24
_DIM = Style(dim=True)
_PLAIN = Style.null()


class LiveView:
    """Draws one stream.

    console: where to. flash_s: how long a changed position stands out. frame_s: the least
    time between two pictures.
    """

    def __init__(
        self,
        console: Console,
        given: Given,
        flash_s: float = FLASH_S,
        frame_s: float = FRAME_S,
    ) -> None:
        self.canvas = Canvas()
        self._console = console
        self._given = given
        self._flash_s = flash_s
        self._frame_s = frame_s
        self._changed_at: dict[tuple[int, int], float] = {}
        self._last_frame = 0.0
        self._last_changed = 0
        self._begun_s = self._at_s = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def apply(self, event: v1.StreamGenerateResponse, at_s: float | None = None) -> None:
        self._at_s = time.monotonic() if at_s is None else at_s
        output = self.canvas.apply(event)
        kind = event.WhichOneof("event")
        if kind == "started":
            self._live.start()
        if output is not None and kind != "committed":
            now = time.monotonic()
            self._last_changed = max(output.fresh, default=self._last_changed)
            for position in output.fresh:
                self._changed_at[output.index, position] = now
        if self.canvas.started is not None:
            self._draw()

    def tick(self, at_s: float) -> None:
        self._at_s = at_s
        if self.canvas.started is not None:
            self._draw()

    def close(self) -> None:
        if not self._live.is_started:
            return
        self._changed_at.clear()
        self._draw(last=True)
        self._live.stop()
        if self.canvas.finished is not None:
            text = Text(final_text(self.canvas, self._given))
            self._console.print()
            self._console.print(text, soft_wrap=True)
            self._console.print()
            self._console.print(Text(summary(self.canvas, self._given), style="dim"))

    def _draw(self, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last_frame < self._frame_s:
            return
        self._last_frame = now
        self._live.update(self.frame(now, whole=last), refresh=True)

    def frame(self, now: float, whole: bool) -> RenderableType:
        """All outputs as they stand at `now` (time.monotonic()); uncut when `whole`."""
        width = min(self._console.width, MAX_WIDTH)
        num_outputs = len(self.canvas.outputs)
        # Each output: two borders, a blank line, two of figures and what was asked for. One stays
        # for the cursor.
        around = 5 + bool(self._given.holes) + (self._given.budget_s is not None)
        height = max(1, (self._console.height - 1) // num_outputs - around)
        return Group(
            *(
                self._panel(output, width, None if whole else height, now)
                for output in self.canvas.outputs
            )
        )

    def _panel(
        self, output: OutputCanvas, width: int, height: int | None, now: float
    ) -> RenderableType:
        styled = self._styled(output, now)
        lines, line_of = wrap(styled, width - 4)
        if height is not None and len(lines) > height:
            # Follow the place where something happens.
            at = line_of.get(self._last_changed, 0)
            top = max(0, min(at - height // 2, len(lines) - height))
            lines = lines[top : top + height]
        return Panel(
            Group(*lines, Text(), self._figures(output, width - 4)),
            title=Text(self._title(output), style="bold"),
            title_align="left",
            box=box.ROUNDED,
            border_style="dim" if output.end is None else "green",
            width=width,
        )

    def _title(self, output: OutputCanvas) -> str:
        started = self.canvas.started
        assert started is not None
        if len(self.canvas.outputs) == 1:
            title = f"{started.model} · seed {started.resolved.sampling.seed}"
        else:
            title = f"{started.model} · answer {output.index + 1} of {len(self.canvas.outputs)}"
        if (constraint := self._given.constraint) is not None:
            title += f" · {constraint_words(constraint)}"
        return title + score_words(output.end)

    def _styled(self, output: OutputCanvas, now: float) -> Iterator[tuple[str, Style, int | None]]:
        lengths = iter(self.canvas.holes)
        opening = ""
        for piece in pieces(self.canvas, output, self._given):
            if piece.state == "edge" and piece.text == CLOSING:
                length = str(len(next(lengths))).translate(_SUPERSCRIPT)
                yield CLOSING + length, _EDGE, None
            elif piece.state == "edge":
                opening = piece.text
            else:
                text, look, position = self._look(output, piece, now)
                if opening:  # reads better behind the space that the hole begins with
                    space = text[: len(text) - len(text.removeprefix(" "))]
                    yield space + opening, _EDGE, None
                    text, opening = text[len(space) :], ""
                yield text, look, position

    def _look(
        self, output: OutputCanvas, piece: Piece, now: float
    ) -> tuple[str, Style, int | None]:
        if piece.position is None:
            return printable(piece.text), _GIVEN, None
        changed_at = self._changed_at.get((output.index, piece.position), -1e9)
        fresh = now - changed_at < self._flash_s
        if piece.state == "masked":
            wide = self.canvas.num_positions <= MAX_WIDE_MASKS
            look = Style(color="red") if fresh else _DIM
            return MASK if wide else SMALL_MASK, look, piece.position
        colour = confidence_colour(piece.confidence)
        if fresh:
            look = Style(color="black", bgcolor=colour, bold=True)
        elif piece.text == AFTER_END:
            look = _DIM
        else:
            look = Style(color=colour)
        return printable(piece.text), look, piece.position

    def _figures(self, output: OutputCanvas, width: int) -> RenderableType:
        started = self.canvas.started
        assert started is not None
        total = self.canvas.num_positions
        filled = total - output.num_masked
        diffusion = started.resolved.diffusion
        steps = f"/{diffusion.steps}" if diffusion.HasField("steps") else ""
        passes = output.forward_passes
        figures = " · ".join(
            (
                f"step {output.step + 1}{steps}",
                f"block {output.block + 1}/{num_blocks(started)}",
                count(passes, "forward pass", "forward passes"),
                f"{filled / passes if passes else 0:.2f} filled per forward",
            )
        )
        bar = _bar(filled / max(1, total), "green", f"{filled}/{total} filled")
        bottom = Table.grid(expand=True)
        bottom.add_column(no_wrap=True)
        if width >= MIN_LEGEND_WIDTH:
            bottom.add_column(no_wrap=True, justify="right")
            bottom.add_row(bar, _legend())
        else:
            bottom.add_row(bar)
        rows: list[RenderableType] = [Text(figures, style="dim"), bottom]
        if self._given.holes:
            rows.append(self._holes())
        if self._given.budget_s is not None:
            rows.append(self._budget(output, self._given.budget_s))
        return Group(*rows)

    def _holes(self) -> Text:
        """Which lengths the holes have, of which they could have had."""
        words = (
            hole_words(hole, len(positions), self.canvas.grows)
            for hole, positions in zip(self._given.holes, self.canvas.holes, strict=True)
        )
        return Text("holes " + " · ".join(words), style="dim", no_wrap=True, overflow="ellipsis")

    def _budget(self, output: OutputCanvas, budget_s: float) -> Text:
        """How much of the time is left, or what was used of it."""
        finished = self.canvas.finished
        used_s = self._at_s - self._begun_s
        if finished is not None:
            used_s = finished.metrics.total_time_ns / 1e9
        left_s = budget_s - used_s
        if left_s < 0:
            words, colour = f"{-left_s:.2f} s over the budget of {budget_s:g} s", "red"
        elif finished is not None:
            words, colour = f"{used_s:.2f} s used of {budget_s:g} s", "blue"
        else:
            words, colour = f"{left_s:.2f} s left of {budget_s:g} s", "blue"
        bar = _bar(min(1.0, used_s / budget_s), colour, words)
        if output.num_hurried:
            bar.append(f" · hurried at {count(output.num_hurried, 'step')}", "yellow")
        return bar


def _bar(share: float, colour: str, words: str) -> Text:
    done = round(BAR_WIDTH * share)
    return Text.assemble(
        ("━" * done, colour), ("━" * (BAR_WIDTH - done), "dim"), (f" {words}", "dim")
    )


def confidence_colour(confidence: float) -> str:
    """Red at 0, yellow at a half, green at 1."""
    confidence = min(1.0, max(0.0, confidence))
    low, high = (_RED, _YELLOW) if confidence < 0.5 else (_YELLOW, _GREEN)
    share = confidence * 2 if confidence < 0.5 else confidence * 2 - 1
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True)
    )


def wrap(
    styled: Iterable[tuple[str, Style, int | None]], width: int
) -> tuple[list[Text], dict[int, int]]:
    """Breaks styled characters into lines of at most `width` cells, and says where positions are.

    Words stay together though their tokens differ in style; between small masks a line may
    break anywhere. A newline is shown as such, and ends its line.
    """
    lines: list[list[tuple[str, Style]]] = [[]]
    line_of: dict[int, int] = {}
    word: list[tuple[str, Style, int | None]] = []
    used = 0

    def break_line() -> None:
        nonlocal used
        lines.append([])
        used = 0

    def put(char: str, style: Style, position: int | None) -> None:
        nonlocal used
        cells = cell_len(char)
        if used + cells > width:
            break_line()
        lines[-1].append((char, style))
        used += cells
        if position is not None:
            line_of[position] = len(lines) - 1

    def put_word() -> None:
        cells = sum(cell_len(char) for char, _, _ in word)
        if used and used + cells > width >= cells:
            break_line()
        for entry in word:
            put(*entry)
        word.clear()

    for text, style, position in styled:
        for char in text:
            if char == "\n":
                put_word()
                put(NEWLINE, _DIM, position)
                break_line()
            elif char == " ":
                put_word()
                # A space that would begin a line is where the line was broken.
                if used < width:
                    put(char, _PLAIN, position)
            elif text == SMALL_MASK:
                put_word()
                put(char, style, position)
            else:
                word.append((char, style, position))
    put_word()
    return [_line(line) for line in lines], line_of


def _line(characters: list[tuple[str, Style]]) -> Text:
    line = Text()
    for style, run in groupby(characters, key=lambda entry: entry[1]):
        line.append("".join(char for char, _ in run), style)
    return line


def _legend() -> Text:
    legend = Text("unsure ", style="dim")
    for i in range(9):
        legend.append("▄", confidence_colour(i / 8))
    return legend.append(" sure", "dim")
