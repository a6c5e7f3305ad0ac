"""Whatever mix of events came, the canvas equals the one that the events describe."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdiff_grpc import v1
from vdiff_grpc.client import Canvas

MASK = 2
PROMPT, HOLE, FROZEN = 2, 5, 1
LAYOUT = v1.CanvasLayout(
    spans=[
        v1.CanvasSpan(kind=v1.SPAN_KIND_PROMPT, length=PROMPT),
        v1.CanvasSpan(kind=v1.SPAN_KIND_HOLE, length=HOLE),
        v1.CanvasSpan(kind=v1.SPAN_KIND_FROZEN, length=FROZEN),
    ],
    token_ids=[10, 11] + [MASK] * HOLE + [12],
    mask_token_id=MASK,
)


def started(n: int = 1, layout: v1.CanvasLayout = LAYOUT) -> v1.StreamGenerateResponse:
    resolved = v1.ResolvedParams(sampling=v1.SamplingParams(n=n))
    return v1.StreamGenerateResponse(started=v1.Started(layout=layout, resolved=resolved))


def committed(text: str, first: int, pieces: list[bytes]) -> v1.StreamGenerateResponse:
    size = len(pieces)
    tokens = v1.Tokens(
        ids=range(100, 100 + size),
        positions=range(first, first + size),
        steps=[0] * size,
        confidences=[0.5] * size,
        token_bytes=pieces,
        text_offsets=[0] * size,
    )
    return v1.StreamGenerateResponse(committed=v1.Committed(text=text, tokens=tokens))


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[int, dict[int, int], bool]]:
    """Steps of two outputs: (output, changed positions and their ids, sent as a snapshot)."""
    positions = st.integers(PROMPT, PROMPT + HOLE - 1)
    ids = st.one_of(st.just(MASK), st.integers(20, 60))
    step = st.tuples(st.integers(0, 1), st.dictionaries(positions, ids, min_size=1), st.booleans())
    return draw(st.lists(step, max_size=30))


@settings(max_examples=100)
@given(changes())
def test_all_updates_and_snapshots_applied_give_the_server_s_canvas(
    steps: list[tuple[int, dict[int, int], bool]],
) -> None:
    canvas = Canvas()
    canvas.apply(started(n=2))
    truth = [list(LAYOUT.token_ids) for _ in range(2)]
    for number, (index, change, as_snapshot) in enumerate(steps):
        for position, token_id in change.items():
            truth[index][position] = token_id
        if as_snapshot:
            canvas.apply(
                v1.StreamGenerateResponse(
                    snapshot=v1.CanvasSnapshot(
                        output_index=index,
                        step=number,
                        token_ids=truth[index],
                        confidences=[0.0] * len(truth[index]),
                    )
                )
            )
            continue
        for kind in (v1.UPDATE_KIND_REVISE, v1.UPDATE_KIND_REMASK):
            wanted = kind == v1.UPDATE_KIND_REMASK
            some = {p: i for p, i in sorted(change.items()) if (i == MASK) == wanted}
            update = v1.StepUpdate(
                output_index=index,
                step=number,
                kind=kind,
                positions=some,
                token_ids=some.values(),
                confidences=[0.0 if wanted else 0.5] * len(some),
                texts=["" if wanted else f"t{i}" for i in some.values()],
            )
            canvas.apply(v1.StreamGenerateResponse(step_update=update))
    for index, output in enumerate(canvas.outputs):
        assert output.token_ids == truth[index]
        assert output.masked == [token_id == MASK for token_id in truth[index]]
        assert output.num_masked == truth[index].count(MASK)


def test_a_snapshot_takes_texts_that_earlier_updates_taught() -> None:
    canvas = Canvas()
    canvas.apply(started())
    update = v1.StepUpdate(
        kind=v1.UPDATE_KIND_UNMASK, positions=[2], token_ids=[30], confidences=[0.9], texts=[" sun"]
    )
    canvas.apply(v1.StreamGenerateResponse(step_update=update))
    snapshot = v1.CanvasSnapshot(
        step=3,
        token_ids=[10, 11, 30, 30, 31, MASK, MASK, 12],
        confidences=[0, 0, 0.9, 0.8, 0.7, 0, 0, 0],
    )
    output = canvas.apply(v1.StreamGenerateResponse(snapshot=snapshot))
    assert output is not None
    assert output.texts == [None, None, " sun", " sun", None, None, None, None]
    assert output.fresh == (3, 4)
    assert output.step == 3


def test_texts_of_the_layout_and_of_a_snapshot_are_taken() -> None:
    layout = v1.CanvasLayout(texts=["A", " b", *[""] * HOLE, "."])
    layout.MergeFrom(LAYOUT)
    canvas = Canvas()
    canvas.apply(started(layout=layout))
    assert canvas.outputs[0].texts == ["A", " b", *[None] * HOLE, "."]
    snapshot = v1.CanvasSnapshot(
        token_ids=[10, 11, 30, MASK, 31, MASK, MASK, 12],
        confidences=[0] * 8,
        texts=["A", " b", " sun", "", " up", "", "", "."],
    )
    canvas.apply(v1.StreamGenerateResponse(snapshot=snapshot))
    assert canvas.outputs[0].texts == ["A", " b", " sun", None, " up", None, None, "."]


def test_committed_alone_fills_the_canvas_and_joins_split_characters() -> None:
    layout = v1.CanvasLayout(spans=LAYOUT.spans, mask_token_id=MASK)
    canvas = Canvas()
    canvas.apply(started(layout=layout))
    canvas.apply(committed("é", 2, [b"\xc3", b"\xa9"]))
    canvas.apply(committed(" b", 4, [b" b"]))
    output = canvas.outputs[0]
    assert output.text == "é b"
    assert output.hole_texts == ["é b"]
    assert output.texts[2:5] == ["", "é", " b"]
    assert output.token_ids == [-1, -1, 100, 101, 100, MASK, MASK, -1]
    assert output.num_masked == 2


def test_what_lies_beyond_the_answer_is_filled_and_is_no_hole() -> None:
    spans = [
        v1.CanvasSpan(kind=v1.SPAN_KIND_PROMPT, length=1),
        v1.CanvasSpan(kind=v1.SPAN_KIND_HOLE, length=2),
        v1.CanvasSpan(kind=v1.SPAN_KIND_SURPLUS, length=1),
    ]
    canvas = Canvas()
    canvas.apply(started(layout=v1.CanvasLayout(spans=spans, mask_token_id=MASK)))
    assert (canvas.holes, canvas.num_positions) == ([range(1, 3)], 3)
    output = canvas.outputs[0]
    assert output.masked == [False, True, True, True]
    update = v1.StepUpdate(
        kind=v1.UPDATE_KIND_UNMASK, positions=[3], token_ids=[30], confidences=[0.9], texts=["x"]
    )
    canvas.apply(v1.StreamGenerateResponse(step_update=update))
    assert (output.num_masked, output.token_ids[3]) == (2, 30)
    snapshot = v1.CanvasSnapshot(token_ids=[10, 20, 21, MASK], confidences=[0, 0.5, 0.5, 0])
    canvas.apply(v1.StreamGenerateResponse(snapshot=snapshot))
    assert output.masked == [False, False, False, True]


def test_the_end_of_each_output_is_kept() -> None:
    canvas = Canvas()
    canvas.apply(started(n=2))
    ends = [v1.OutputEnd(index=1, seed=8), v1.OutputEnd(index=0, seed=7)]
    canvas.apply(v1.StreamGenerateResponse(finished=v1.Finished(ends=ends)))
    assert [output.end.seed for output in canvas.outputs if output.end] == [7, 8]


def test_events_of_a_later_contract_are_passed_over_and_a_missing_start_is_refused() -> None:
    canvas = Canvas()
    with pytest.raises(ValueError, match="before started"):
        canvas.apply(v1.StreamGenerateResponse(step_update=v1.StepUpdate()))
    canvas.apply(started())
    assert canvas.apply(v1.StreamGenerateResponse()) is None
