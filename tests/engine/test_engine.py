"""The engine between steps: joining, waiting, leaving, time, faults."""

from __future__ import annotations

import dataclasses
import time

import pytest

from tests.engine.tools import GOLDEN, add, finished, run, run_all, tiny_engine
from vdiff_grpc.engine.decoding.registry import RULES
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Failed, Finished
from vdiff_grpc.engine.packing import PackedStep
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import Klass, Wino
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import DeadlineError, EngineFaultError, QueueFullError


def request(num_new: int, **params: object) -> Request:
    values = RequestParams(max_new_tokens=num_new, seed=1, **params)  # type: ignore[arg-type]
    return Request(TokensPrompt((1, 2, 3)), values)


def ended(events: list[tuple[int, object]]) -> list[int]:
    return [key for key, event in events if isinstance(event, Finished)]


def test_a_request_joins_and_leaves_between_steps() -> None:
    engine = tiny_engine()
    add(engine, 1, request(6))
    engine.step()
    add(engine, 2, request(2))
    left = [ended(engine.step()) for _ in range(5)]
    assert left == [[], [2], [], [], [1]]
    assert engine.statistics.engine_steps == 6
    assert engine.statistics.forward_passes == 8


def test_one_row_too_many_waits_and_a_full_queue_refuses() -> None:
    engine = tiny_engine(max_running_rows=2, max_waiting_rows=1)
    for key in (1, 2, 3):
        add(engine, key, request(3))
    engine.step()
    assert (engine.statistics.running_rows, engine.statistics.waiting_rows) == (2, 1)
    with pytest.raises(QueueFullError, match="3 of 3 places"):
        add(engine, 4, request(3))
    engine.abort(1)
    engine.step()
    assert (engine.statistics.running_rows, engine.statistics.waiting_rows) == (2, 0)
    run_all(engine)
    assert engine.statistics.requests_finished == 2
    assert engine.statistics.requests_aborted == 1


def test_tokens_per_step_are_limited_and_nobody_starves() -> None:
    engine = tiny_engine(max_step_tokens=20)
    for key in (1, 2, 3):
        add(engine, key, request(5))  # 8 canvas tokens each
    engine.step()
    assert engine.statistics.running_rows == 2
    assert sorted(run_all(engine)) == [1, 2, 3]


def test_a_request_whose_time_is_over_ends_within_one_step() -> None:
    engine = tiny_engine(max_running_rows=1)
    resolved = resolve(request(50), engine.info, engine.limits, None)
    engine.add(1, dataclasses.replace(resolved, deadline_ns=None))
    engine.add(2, dataclasses.replace(resolved, deadline_ns=time.monotonic_ns()))  # waits
    add(engine, 3, request(1))
    assert [(key, type(event.error)) for key, event in engine.step()] == [(2, DeadlineError)]  # type: ignore[union-attr]
    engine.extend(1, time.monotonic_ns())
    before = engine.statistics.forward_passes
    events = dict(engine.step())
    assert isinstance(events[1], Failed)
    assert isinstance(events[1].error, DeadlineError)
    assert engine.statistics.forward_passes - before == 1, "the other row's step, and no more"


def test_outputs_differ_and_each_can_be_had_again_by_its_seed() -> None:
    engine = tiny_engine()
    asked = request(12, temperature=1.0, n=3, ignore_eos=True)
    outputs = engine.generate(asked).outputs
    assert len({o.canvas for o in outputs}) == 3
    for output in outputs:
        params = dataclasses.replace(asked.params, n=1, seed=output.seed)
        again = engine.generate(dataclasses.replace(asked, params=params))
        assert again.outputs[0].canvas == output.canvas


def test_an_exception_in_a_step_fails_its_requests_and_not_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = tiny_engine()
    forward = engine.runner.forward

    def broken(packed: PackedStep) -> None:
        raise RuntimeError("secret words")

    engine.runner.forward = broken  # type: ignore[method-assign, assignment]
    add(engine, 1, request(4))
    (key, event), *_ = engine.step()
    assert key == 1
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFaultError)
    assert "secret" not in str(event.error)
    assert event.error.fault_id in caplog.text
    engine.runner.forward = forward  # type: ignore[method-assign]
    add(engine, 2, request(4))
    assert isinstance(finished(run_all(engine)[2]), Finished)


def test_an_exception_while_committing_fails_one_request_and_not_its_neighbour() -> None:
    engine = tiny_engine()
    add(engine, 1, request(4))
    expected = finished(run_all(engine)[1]).outputs[0].canvas
    add(engine, 2, request(4))
    add(engine, 3, request(4))

    def broken(*_: object) -> None:
        raise RuntimeError

    engine._open[2].sequences[0].apply = broken  # type: ignore[method-assign]
    events = run_all(engine)
    assert isinstance(events[2][0], Failed)
    assert finished(events[3]).outputs[0].canvas == expected


@pytest.mark.parametrize("part", ["plan", "settle"])
def test_a_fault_of_one_rows_rule_fails_its_request_only(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    expected = finished(run(engine, request(4))).outputs[0].canvas

    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(RULES[Klass], part, broken)
    add(engine, 2, request(4, strategy=Klass()))
    add(engine, 3, request(4))
    events = run_all(engine)
    assert isinstance(events[2][0], Failed)
    assert finished(events[3]).outputs[0].canvas == expected
    assert engine.statistics.requests_failed == 1


def test_committed_tokens_are_those_that_were_filled() -> None:
    engine = tiny_engine()
    wino = request(12, strategy=Wino(0.05, 0.9), ignore_eos=True)
    output = engine.generate(wino).outputs[0]
    assert output.remasked
    assert engine.statistics.committed_tokens == 12 + output.remasked


def test_a_templates_holes_are_told_one_by_one_and_a_continuation_has_none() -> None:
    engine = tiny_engine()
    template = InfillPrompt(((1, 2), Hole(3)))
    assert engine.generate(Request(template)).outputs[0].hole_texts == ("",)
    assert engine.generate(request(3)).outputs[0].hole_texts == ()


def test_guided_steps_count_two_forward_passes() -> None:
    engine = tiny_engine()
    done = engine.generate(request(4, steps=4, cfg_scale=1.0))
    assert done.outputs[0].forward_passes == 8
    assert engine.statistics.forward_passes == 8


def test_ids_without_a_meaning_are_never_generated() -> None:
    """The tied checkpoint's embedding is 128 wide, its vocabulary 97."""
    from tests.engine.tools import GOLDEN

    engine: Engine = tiny_engine(GOLDEN / "tiny-llada-tied", early_end=False)
    done = engine.generate(request(100, temperature=2.0, block_length=100, steps=4))
    assert max(done.outputs[0].canvas) < 96


def test_a_canvas_of_one_block_is_enough_to_start() -> None:
    engine = tiny_engine(GOLDEN / "tiny-sdar", max_canvas_tokens=4)
    engine.warm_up()
    assert engine.statistics.requests == 0
