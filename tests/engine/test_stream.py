"""What a stream promises: applied updates are the canvas, joined deltas are the text."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.tools import add, finished, run_all, tiny_engine
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import CanvasSnapshot, Committed, StepUpdate
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, Prompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, Remasking
from vdiff_grpc.engine.types import Granularity, Request, RequestParams


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


prompts: st.SearchStrategy[Prompt] = st.one_of(
    st.builds(TokensPrompt, st.lists(st.integers(0, 93), min_size=1, max_size=8).map(tuple)),
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 93), min_size=1, max_size=3).map(tuple),
            st.builds(Hole, st.integers(1, 6)),
        ),
        max_size=4,
    ).map(lambda segments: InfillPrompt((*segments, Hole(3)))),
)
strategies = st.one_of(
    st.builds(FixedSchedule, st.sampled_from(Remasking)),
    st.builds(ConfidenceThreshold, st.floats(0.05, 1)),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts,
    strategies,
    st.integers(1, 20),
    st.integers(1, 24),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 5),
    st.integers(1, 2),
)
def test_updates_make_the_canvas_and_deltas_the_tokens(
    engine: Engine,
    prompt: Prompt,
    strategy: FixedSchedule | ConfidenceThreshold,
    block_length: int,
    num_new: int,
    temperature: float,
    stride: int,
    n: int,
) -> None:
    params = RequestParams(
        max_new_tokens=None if isinstance(prompt, InfillPrompt) else num_new,
        block_length=block_length,
        temperature=temperature,
        strategy=strategy,
        seed=5,
        n=n,
    )
    request = Request(prompt, params, granularity=Granularity.STEPS, stride=stride)
    add(engine, 1, request)
    initial = list(engine._open[1].request.canvas)
    events = run_all(engine)[1]
    for output in finished(events).outputs:
        canvas = list(initial)
        for event in events:
            if isinstance(event, StepUpdate) and event.output_index == output.index:
                assert list(event.positions) == sorted(event.positions)
                for position, token in zip(event.positions, event.token_ids, strict=True):
                    assert canvas[position] == engine.info.mask_token_id, "filled once"
                    canvas[position] = token
        assert tuple(canvas) == output.canvas
        committed = [
            e for e in events if isinstance(e, Committed) and e.output_index == output.index
        ]
        assert sum((c.tokens.ids for c in committed), ()) == output.tokens.ids
        assert "".join(c.text for c in committed) == output.text


def test_positions_arrive_out_of_order_and_frozen_ones_never(engine: Engine) -> None:
    prompt = InfillPrompt(((5, 6), Hole(8), (7,), Hole(8), (8, 9)))
    add(engine, 1, Request(prompt, granularity=Granularity.STEPS))
    events = run_all(engine)[1]
    order = [p for e in events if isinstance(e, StepUpdate) for p in e.positions]
    assert order != sorted(order)
    assert set(order) == {*range(2, 10), *range(11, 19)}
    canvas = finished(events).outputs[0].canvas
    assert (canvas[:2], canvas[10], canvas[19:]) == ((5, 6), 7, (8, 9))


def test_a_snapshot_holds_what_the_updates_made(engine: Engine) -> None:
    request = Request(TokensPrompt((1,)), RequestParams(max_new_tokens=9), "", Granularity.STEPS)
    add(engine, 1, request)
    updates = [e for e in run_all(engine)[1] if isinstance(e, StepUpdate)]
    add(engine, 2, dataclasses.replace(request, granularity=Granularity.SNAPSHOTS, stride=2))
    snapshots = [e for e in run_all(engine)[2] if isinstance(e, CanvasSnapshot)]
    assert [s.step for s in snapshots] == [1, 3, 5, 7, 8]
    for snapshot in snapshots:
        canvas = [1] + [engine.info.mask_token_id] * 9
        for update in itertools.takewhile(lambda u, s=snapshot: u.step <= s.step, updates):
            for position, token in zip(update.positions, update.token_ids, strict=True):
                canvas[position] = token
        assert snapshot.token_ids == tuple(canvas)
