"""The promise: the same request with the same seed gives the same tokens in any company."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.engine.tools import LogitsRecorder, add, finished, run_all, tiny_engine
from vdiff_grpc.engine.types import (
    ConfidenceThreshold,
    Event,
    FixedSchedule,
    Granularity,
    Hole,
    InfillPrompt,
    Remasking,
    Request,
    RequestParams,
    TokensPrompt,
)


def mixed_requests(count: int = 16, seed: int = 7) -> list[Request]:
    """Different prompts, lengths, temperatures, filters, seeds, steps, blocks, strategies."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = tuple(rng.randrange(94) for _ in range(rng.randint(1, 40)))
        num_new = rng.choice([1, 3, 8, 16, 31, 48])
        block = rng.choice([1, 4, 7, 16, 32])
        strategy = [
            FixedSchedule(),
            ConfidenceThreshold(rng.choice([0.3, 0.9])),
            FixedSchedule(Remasking.RANDOM),
        ][i % 3]
        steps = None
        if isinstance(strategy, FixedSchedule):
            blocks = -(-num_new // min(block, num_new))
            steps = rng.randint(blocks, num_new)
        params = RequestParams(
            max_new_tokens=num_new,
            block_length=block,
            steps=steps,
            temperature=[0.0, 0.7, 1.3][i % 3 if i % 2 else 0],
            top_p=rng.choice([1.0, 0.8]),
            top_k=rng.choice([0, 5]),
            cfg_scale=rng.choice([0.0, 0.0, 1.5]),
            seed=rng.randrange(2**64),
            n=1 + (i % 5 == 4),
            strategy=strategy,
        )
        if i % 8 == 7:
            infill = InfillPrompt((prompt, Hole(6), (3, 4, 5), Hole(2), (9,)))
            requests.append(
                Request(
                    infill,
                    RequestParams(temperature=1.0, block_length=5, seed=i),
                )
            )
        else:
            requests.append(Request(TokensPrompt(prompt), params))
    return [Request(r.prompt, r.params, granularity=Granularity.STEPS) for r in requests]


def canvases(events: list[Event]) -> list[tuple[int, ...]]:
    return [output.canvas for output in finished(events).outputs]


@pytest.mark.parametrize("arrivals", [1, 2, 3])
def test_a_request_gives_the_same_tokens_and_logits_alone_and_in_any_company(arrivals: int) -> None:
    check_company(arrivals)


def test_one_constant_shape_keeps_the_promise_too() -> None:
    check_company(4, batch_invariant=True, max_step_tokens=600)


def check_company(arrivals: int, **config: Any) -> None:
    """Each of 16 requests alone, then all together, arriving at random between steps."""
    requests = mixed_requests()
    engine = tiny_engine(max_running_rows=11, **config)
    recorder = LogitsRecorder.install(engine)
    alone = {}
    for key, request in enumerate(requests):
        add(engine, key, request)
        alone[key] = run_all(engine)[key]
    logits_alone = dict(recorder.seen)

    recorder.seen.clear()
    rng = random.Random(arrivals)
    order = rng.sample(range(len(requests)), len(requests))
    together: dict[int, list[Event]] = {key: [] for key in order}
    shared = 0
    while order or engine.has_work:
        while order and rng.random() < 0.4:
            key = order.pop()
            add(engine, key, requests[key])
        for key, event in engine.step():
            together[key].append(event)
        shared = max(shared, len(engine.scheduler.running))
    assert shared >= 4, "the requests hardly met"
    for key in alone:
        assert canvases(together[key]) == canvases(alone[key])
        assert together[key][:-1] == alone[key][:-1], "the same events, in the same order"
    for row, expected in logits_alone.items():
        for step, (a, b) in enumerate(zip(expected, recorder.seen[row], strict=True)):
            assert torch.equal(a, b), f"row {row}, step {step}: {(a - b).abs().max()}"


def test_an_aborted_neighbour_changes_nothing() -> None:
    requests = mixed_requests(6)
    engine = tiny_engine()
    add(engine, 0, requests[0])
    expected = run_all(engine)[0][:-1]
    for key, request in enumerate(requests):
        add(engine, key, request)
    events = [event for key, event in engine.step() if key == 0]
    for key in range(1, 6):
        engine.abort(key)
        events += [event for owner, event in engine.step() if owner == 0]
    events += run_all(engine)[0]
    assert events[:-1] == expected
