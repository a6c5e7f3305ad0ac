"""Turns and places in a real engine: who waits for whom, and that no answer changes."""

from __future__ import annotations

import dataclasses
import time

import torch

from tests.engine.test_company import mixed_requests
from tests.engine.tools import GOLDEN, LogitsRecorder, finished, run_all, tiny_engine
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import resolve


def add(engine: Engine, key: int, request: Request, caller: str) -> None:
    resolved = resolve(request, engine.info, engine.limits, engine.tokenizer)
    engine.add(key, dataclasses.replace(resolved, caller=caller))


def plain(num_new: int, prompt: int = 4, **rest: int) -> Request:
    params = RequestParams(max_new_tokens=num_new, ignore_eos=True, seed=1)
    return Request(TokensPrompt(tuple(range(prompt))), params, **rest)


def by_output(events: list[Event]) -> list[Event]:
    """All but the end; outputs of one request may take different turns."""
    return sorted(events[:-1], key=lambda event: event.output_index)  # type: ignore[union-attr]


def test_answers_are_bit_equal_whatever_turns_are_taken() -> None:
    requests = [r for r in mixed_requests() if r.params.strategy is not None]
    alone = tiny_engine(GOLDEN / "tiny-llada", aux_model_path=str(GOLDEN / "tiny-causal"))
    turning = [
        tiny_engine(
            GOLDEN / "tiny-llada",
            aux_model_path=str(GOLDEN / "tiny-causal"),
            target_step_tokens=target,
        )
        for target in (1, 100)
    ]
    recorders = [LogitsRecorder.install(engine) for engine in (alone, *turning)]
    expected = {}
    for key, request in enumerate(requests):
        add(alone, key, request, "")
        expected[key] = run_all(alone)[key]
    for engine, recorder in zip(turning, recorders[1:], strict=True):
        for key, request in enumerate(requests):
            add(engine, key, request, f"caller {key % 3}")
        together = run_all(engine)
        for key, events in expected.items():
            assert by_output(together[key]) == by_output(events)
            assert finished(together[key]).outputs == finished(events).outputs
        for row, steps in recorders[0].seen.items():
            others = recorder.seen[row]
            assert len(others) == len(steps)
            assert all(map(torch.equal, steps, others))
    steps = [engine.statistics.engine_steps for engine in turning]
    assert steps[0] > steps[1], "the smaller the target, the more steps"


def test_a_short_row_beside_a_long_one_steps_often() -> None:
    engine = tiny_engine(target_step_tokens=30)
    add(engine, 1, plain(100), "long")
    add(engine, 2, plain(6), "short")
    seen: list[list[int]] = []
    engine.before_step = lambda rows: seen.append([row.key for row in rows])
    run_all(engine)
    with_short = [keys for keys in seen if 2 in keys]
    assert seen[:6] == with_short, "it is in every step until it ends"
    assert sum(1 in keys for keys in with_short) == 1
    assert sum(1 in keys for keys in seen) == 100


def test_a_heavy_caller_delays_anothers_request_by_one_of_its_rows() -> None:
    engine = tiny_engine(max_running_rows=2, max_waiting_rows=300)
    for key in range(60):
        add(engine, key, plain(5), "heavy")
    for _ in range(7):
        engine.step()
    add(engine, 100, plain(5), "light")
    ended: list[int] = []
    for _ in range(5 + 5):
        ended += [key for key, _ in engine.step()]
    assert 100 in ended, "after one row's steps, and its own"
    assert len(engine.scheduler.waiting) >= 50


def test_the_queue_time_ends_with_the_first_step_not_the_place() -> None:
    engine = tiny_engine(target_step_tokens=30)
    add(engine, 1, plain(8), "a")
    engine.step()
    begun = time.monotonic_ns()
    add(engine, 2, plain(100), "b")
    first: list[int] = []

    def note(rows: object) -> None:
        if any(row.key == 2 for row in rows) and not first:  # type: ignore[attr-defined]
            first.append(time.monotonic_ns())

    engine.before_step = note
    queue_ns = finished(run_all(engine)[2]).queue_time_ns
    assert queue_ns <= first[0] - begun + 10_000_000
    assert queue_ns > 0
    assert engine.statistics.waiting_rows == 0


def test_the_smaller_priority_gets_the_place() -> None:
    engine = tiny_engine(max_running_rows=1)
    for key, priority in enumerate((0, 5, 0, -5)):
        add(engine, key, plain(2, priority=priority), "one")
    assert list(run_all(engine)) == [3, 0, 2, 1]
