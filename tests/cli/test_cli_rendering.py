"""How a canvas looks, in lines and on a terminal, from hand-made events."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from vdiff_grpc import v1
from vdiff_grpc.cli.live import LiveView, confidence_colour, wrap
from vdiff_grpc.cli.terminal import PlainView, num_blocks, show
from vdiff_grpc.cli.words import Given, constraint_words, end_reason, printable

MASK_ID, END_ID = 2, 0
GIVEN = Given(("The cat", " end"), frozenset([END_ID]))
# A word in two tokens, a newline, an end token and what follows it.
TEXTS = [" sat", " hap", "pily", ".", "\n", "He", "<|end|>", "<|end|>"]


def _started(n: int = 1) -> v1.StreamGenerateResponse:
    return v1.StreamGenerateResponse(
        started=v1.Started(
            model="m",
            resolved=v1.ResolvedParams(
                sampling=v1.SamplingParams(n=n, seed=5),
                diffusion=v1.DiffusionParams(block_length=4, steps=8),
            ),
            layout=v1.CanvasLayout(
                spans=[
                    v1.CanvasSpan(kind=v1.SPAN_KIND_PROMPT, length=2),
                    v1.CanvasSpan(kind=v1.SPAN_KIND_HOLE, length=len(TEXTS)),
                    v1.CanvasSpan(kind=v1.SPAN_KIND_FROZEN, length=1),
                ],
                token_ids=[10, 11] + [MASK_ID] * len(TEXTS) + [12],
                mask_token_id=MASK_ID,
            ),
        )
    )


def _update(step: int, indices: Sequence[int], output_index: int = 0) -> v1.StreamGenerateResponse:
    return v1.StreamGenerateResponse(
        step_update=v1.StepUpdate(
            output_index=output_index,
            step=step,
            block=indices[0] // 4,
            forward_passes=step + 1,
            kind=v1.UPDATE_KIND_UNMASK,
            positions=[2 + i for i in indices],
            token_ids=[END_ID if TEXTS[i] == "<|end|>" else 20 + i for i in indices],
            confidences=[0.2 + 0.1 * i for i in indices],
            texts=[TEXTS[i] for i in indices],
        )
    )


def _finish(n: int = 1) -> list[v1.StreamGenerateResponse]:
    events = [
        v1.StreamGenerateResponse(committed=v1.Committed(output_index=i, text=" sat happily.\nHe"))
        for i in range(n)
    ]
    end = v1.Finished(
        ends=[
            v1.OutputEnd(index=i, seed=5 + i, finish_reason=v1.FINISH_REASON_STOP) for i in range(n)
        ],
        usage=v1.Usage(completion_tokens=6),
        metrics=v1.Metrics(forward_passes=4, tokens_per_forward=2, total_time_ns=250_000_000),
    )
    return [*events, v1.StreamGenerateResponse(finished=end)]


EVENTS = [
    _started(),
    _update(0, [0]),
    _update(1, [2, 3]),
    _update(2, [5, 6, 7]),
    _update(3, [1, 4]),
    *_finish(),
]


async def _stream(
    events: Sequence[v1.StreamGenerateResponse],
) -> AsyncIterator[v1.StreamGenerateResponse]:
    for event in events:
        await asyncio.sleep(0)
        yield event


async def test_plain_lines_show_every_step_and_then_the_text_and_a_summary() -> None:
    out = io.StringIO()
    await show(_stream(EVENTS), PlainView(out, GIVEN))
    assert out.getvalue().splitlines() == [
        "step 1  block 1  filled 1/8  passes 1  The cat[ sat░░░░░░░] end",
        "step 2  block 1  filled 3/8  passes 2  The cat[ sat░pily.░░░░] end",
        "step 3  block 2  filled 6/8  passes 3  The cat[ sat░pily.░He∎·] end",
        "step 4  block 1  filled 8/8  passes 4  The cat[ sat happily.↵He∎·] end",
        "",
        "The cat sat happily.",
        "He end",
        "",
        "6 tokens · 4 forward passes · 2.00 tokens per forward · 0.25 s",
        "ended by end of text · seed 5",
    ]


async def test_plain_lines_fit_an_output_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "ascii")
    await show(_stream(EVENTS[:2]), PlainView(out, GIVEN))
    assert raw.getvalue() == b"step 1  block 1  filled 1/8  passes 1  The cat[ sat_______] end\n"


async def test_plain_lines_name_the_answer_when_there_are_several() -> None:
    out = io.StringIO()
    events = [_started(2), _update(0, [0], 1), *_finish(2)]
    await show(_stream(events), PlainView(out, GIVEN))
    assert out.getvalue().startswith("answer 2  step 1")
    assert "--- answer 2 ---\nThe cat sat happily.\nHe end\n" in out.getvalue()
    assert "seeds 5, 6" in out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
async def test_a_terminal_shows_the_canvas_within_its_width(width: int) -> None:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=24, color_system="truecolor"
    )
    await show(_stream(EVENTS), LiveView(console, GIVEN))
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert all(len(line) <= width for line in screen.replace("\r", "\n").splitlines())
    assert "│ The cat [sat happily.↵" in screen
    assert "│ He∎·]⁸ end" in screen
    assert screen.endswith("ended by end of text · seed 5\n")
    # The colours of two positions, without the flash of a fresh one.
    for confidence in (0.2, 0.7):
        red, green, blue = (int(confidence_colour(confidence)[i : i + 2], 16) for i in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}m" in out.getvalue()


async def test_a_terminal_flashes_fresh_positions_and_dims_masked_ones() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24, color_system="truecolor")
    await show(_stream(EVENTS[:2]), LiveView(console, GIVEN), delay_s=0.1)
    assert re.search(r"\x1b\[1;30;48;2;[\d;]+msat", out.getvalue())
    assert "\x1b[2m░░░" in out.getvalue()


async def test_a_canvas_higher_than_the_terminal_is_cropped_to_it_until_the_end() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, height=12)
    tall = Given(("\n".join(f"line {i}" for i in range(30)),))
    view = LiveView(console, tall, frame_s=0)
    for event in EVENTS[:2]:
        view.apply(event)
    picture = out.getvalue().rpartition("╭")[2]
    assert picture.count("\n") < 12
    assert "sat" in picture
    view.close()
    assert out.getvalue().count("\n") > 30


async def test_a_failing_stream_leaves_the_terminal_in_order() -> None:
    async def failing() -> AsyncIterator[v1.StreamGenerateResponse]:
        yield EVENTS[0]
        raise RuntimeError("lost")

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with pytest.raises(RuntimeError, match="lost"):
        await show(failing(), LiveView(console, GIVEN))
    hidden, shown = out.getvalue().rfind("\x1b[?25l"), out.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


async def test_a_delay_slows_the_picture_and_not_the_reading() -> None:
    read: list[int] = []

    async def counted() -> AsyncIterator[v1.StreamGenerateResponse]:
        for number, event in enumerate(EVENTS):
            read.append(number)
            yield event

    class Recorder:
        seen_at_first_step = 0

        def apply(self, event: v1.StreamGenerateResponse, at_s: float) -> None:
            pass

        def tick(self, at_s: float) -> None:
            self.seen_at_first_step = self.seen_at_first_step or len(read)

        def close(self) -> None:
            pass

    recorder = Recorder()
    await show(counted(), recorder, delay_s=0.05)
    assert recorder.seen_at_first_step == len(EVENTS)


@settings(max_examples=200)
@given(
    st.lists(st.text("ab \n世░", max_size=6), max_size=40),
    st.integers(4, 30),
)
def test_wrapped_lines_keep_the_width_and_lose_only_spaces(texts: list[str], width: int) -> None:
    lines, line_of = wrap([(t, Style.null(), i) for i, t in enumerate(texts)], width)
    assert all(line.cell_len <= width for line in lines)
    everything = "".join(line.plain for line in lines)
    assert everything.replace(" ", "").replace("↵", "") == (
        "".join(texts).replace(" ", "").replace("\n", "")
    )
    assert all(0 <= line < len(lines) for line in line_of.values())


def test_a_word_of_two_tokens_stays_on_one_line() -> None:
    lines, _ = wrap([("The quick", Style.null(), 0), ("est fox", Style(bold=True), 1)], 9)
    assert [line.plain.rstrip() for line in lines] == ["The", "quickest", "fox"]


def test_control_characters_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\tc\r\nd") == "a�[2Jb c \nd"


def test_confidence_goes_from_red_over_yellow_to_green() -> None:
    low, middle, high = (
        [int(confidence_colour(c)[i : i + 2], 16) for i in (1, 3, 5)] for c in (0.0, 0.5, 1.0)
    )
    assert low[0] > 2 * low[1]
    assert abs(middle[0] - middle[1]) < 60
    assert high[1] > high[0]


def test_what_lies_beyond_the_answer_is_shown_and_is_no_text() -> None:
    start = _started()
    spans = start.started.layout.spans
    spans[1].length, spans[2].kind = len(TEXTS) - 1, v1.SPAN_KIND_SURPLUS
    spans[2].length = 2
    finish = _finish()
    finish[-1].finished.metrics.remasked = 3
    finish[-1].finished.metrics.revised = 1
    out = io.StringIO()
    view = PlainView(out, Given(("The cat",), frozenset([END_ID])))
    for event in (start, _update(0, [0, 1, 2, 3]), _update(1, [7]), *finish):
        view.apply(event)
    lines = out.getvalue().splitlines()
    assert "filled 4/9" in lines[0]
    assert lines[0].endswith("The cat sat happily." + "░" * 5)
    assert lines[1].endswith("The cat sat happily.░░░·░"), "beyond the answer: filled, but no text"
    assert "\nThe cat sat happily.\nHe\n" in out.getvalue()
    assert "3 masked again · 1 revised · " in out.getvalue()
    assert num_blocks(start.started) == 3


def _screen(out: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_a_terminal_shows_the_constraint_and_what_is_left_of_the_budget() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    asked = Given(
        ("The cat", " end"), frozenset([END_ID]), constraint=v1.Constraint(regex=".*"), budget_s=2.0
    )
    view = LiveView(console, asked, frame_s=0)
    begun_s = time.monotonic()

    def seen(event: v1.StreamGenerateResponse, at_s: float) -> str:
        out.seek(out.truncate(0))
        view.apply(event, begun_s + at_s)
        return _screen(out)

    first = seen(_started(), 0.5)
    assert "─ m · seed 5 · regex .* ─" in first
    assert "1.50 s left of 2 s" in first
    assert "hurried" not in first
    hasty = _update(0, [0, 1])
    hasty.step_update.hurried = True
    assert "1.25 s left of 2 s · hurried at 1 step " in seen(hasty, 0.75)
    assert "hurried at 1 step " in seen(_update(1, [2]), 1.0)
    hasty.step_update.step = 2
    assert "0.50 s over the budget of 2 s · hurried at 2 steps" in seen(hasty, 2.5)
    out.seek(out.truncate(0))
    view.tick(begun_s + 3.0)
    assert "1.00 s over the budget" in _screen(out)
    *_, finish = _finish()
    finish.finished.metrics.hurried = True
    finish.finished.ends[0].score = -1.5
    last = seen(finish, 9.0)
    assert "seed 5 · regex .* · score -1.500 ─" in last
    assert "0.25 s used of 2 s · hurried at 2 steps" in last
    view.close()
    assert "forward · 0.25 s of 2 s\nhurried at 2 steps · ended by end of text" in _screen(out)
    assert _screen(out).endswith("seed 5 · score -1.500\n")


def test_a_delayed_picture_tells_the_budget_of_its_own_moment() -> None:
    seen: list[float] = []

    class Recorder:
        def apply(self, event: v1.StreamGenerateResponse, at_s: float) -> None:
            seen.append(at_s)

        def tick(self, at_s: float) -> None:
            seen.append(at_s)

        def close(self) -> None:
            pass

    asyncio.run(show(_stream(EVENTS[:4]), Recorder(), delay_s=0.1))
    assert max(seen) < time.monotonic() - 0.2


def test_a_terminal_tells_which_lengths_the_holes_could_have_had() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    holes = (v1.Hole(min_length=2, max_length=9, constraint=v1.Constraint(regex="a+")),)
    view = LiveView(console, Given(("The cat", " end"), holes=holes), frame_s=0)
    view.apply(EVENTS[0])
    assert "The cat [░░░ " in _screen(out)
    assert "]⁸ end" in _screen(out)
    assert "holes 8 of 2..9 regex a+" in _screen(out)


def test_constraints_are_told_in_a_few_words() -> None:
    assert constraint_words(v1.Constraint(json_schema="{}")) == "json_schema"
    colours = v1.Choice(options=[" red", "green\n"])
    assert constraint_words(v1.Constraint(choice=colours)) == "choice red | green"
    long = constraint_words(v1.Constraint(regex="a\n" + "b" * 99))
    assert long == "regex a↵" + "b" * 31 + "…"


def test_an_answer_that_its_deadline_ended_says_so() -> None:
    assert end_reason(v1.OutputEnd(finish_reason=v1.FINISH_REASON_PARTIAL)) == "the deadline"
