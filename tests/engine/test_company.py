"""The promise: the same request with the same seed gives the same tokens in any company."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from tests.engine.tools import GOLDEN, LogitsRecorder, add, finished, run_all, tiny_engine
from vdiff_grpc.engine.events import Event
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import (
    STRATEGIES,
    AdaptiveConfidence,
    AdaptiveParallel,
    ConfidenceThreshold,
    DreamOrder,
    DreamSchedule,
    DynamicThreshold,
    Editing,
    EntropyBound,
    Factor,
    FixedSchedule,
    FreeDave,
    Klass,
    LeftToRight,
    LocalLeap,
    Remasking,
    Remdm,
    RemdmMode,
    UniformNoise,
    Wino,
)
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

# Low thresholds: a random model is never sure.
_STRATEGIES = (
    FixedSchedule(),
    ConfidenceThreshold(0.3),
    FixedSchedule(Remasking.RANDOM),
    DreamSchedule(DreamOrder.ENTROPY, order_temperature=0.5),
    DreamSchedule(DreamOrder.ORIGIN),
    Factor(2.0),
    DynamicThreshold(0.2),
    EntropyBound(3.0),
    Klass(0.1, 0.5),
    LocalLeap(0.3, 0.1),
    Wino(0.1, 0.3),
    Remdm(eta=0.3),
    Remdm(RemdmMode.CONF),
    Editing(0.3, 0.1, 3),
    FreeDave(2),
    AdaptiveParallel(0.5, 9),
    AdaptiveConfidence(0.1),
    LeftToRight(),
)


def test_every_strategy_is_in_company() -> None:
    kinds = {type(strategy) for strategy in _STRATEGIES}
    assert kinds == set(STRATEGIES.values()) - {UniformNoise}, "which has a family of its own"


def mixed_requests(count: int = 18, seed: int = 7) -> list[Request]:
    """Different prompts, lengths, temperatures, filters, seeds, steps, blocks, strategies."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = tuple(rng.randrange(94) for _ in range(rng.randint(1, 40)))
        num_new = rng.choice([1, 3, 8, 16, 31, 48])
        block = rng.choice([1, 4, 7, 16, 32])
        strategy = _STRATEGIES[i % len(_STRATEGIES)]
        steps = None
        if strategy.HAS_STEPS:
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
            top_logprobs=rng.choice([None, 3]),
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


def test_several_threads_keep_the_promise_too() -> None:
    before = torch.get_num_threads()
    try:
        check_company(5, threads=2)
    finally:
        torch.set_num_threads(before)


def check_company(arrivals: int, **config: Any) -> None:
    """Each of 16 requests alone, then all together, arriving at random between steps."""
    requests = mixed_requests()
    engine = tiny_engine(max_running_rows=11, aux_model_path=str(GOLDEN / "tiny-causal"), **config)
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


@pytest.mark.parametrize("num_banned", [7, 15, 31])
def test_a_neighbour_that_may_not_end_changes_no_bit(num_banned: int) -> None:
    engine = tiny_engine()
    engine.runner._banned_ids = torch.arange(60, 60 + num_banned)
    asked = RequestParams(max_new_tokens=12, seed=1, strategy=EntropyBound(0.5))
    requests = [
        Request(TokensPrompt((7 * i, 3, i)), asked, granularity=Granularity.STEPS)
        for i in range(1, 6)
    ]
    told = []
    for ignore_eos in (None, True):
        for key, request in enumerate(requests):
            add(engine, key, request)
        other = dataclasses.replace(asked, ignore_eos=ignore_eos)
        add(engine, 99, Request(TokensPrompt((9,)), other))
        events = run_all(engine)
        told.append([events[key][:-1] for key in range(len(requests))])
    assert told[0] == told[1]


def test_a_neighbour_that_asks_for_more_top_tokens_changes_none() -> None:
    """Of equal logits, as bfloat16 has many, which are told depends on how many are taken."""
    engine = tiny_engine(dtype="bfloat16", early_end=False)
    head = engine.model.network.get_output_embeddings().weight
    head.copy_(head[:1].expand_as(head))  # all tokens are equally likely
    asked = RequestParams(max_new_tokens=40, seed=1, top_logprobs=3)
    request = Request(TokensPrompt((7, 3)), asked, granularity=Granularity.STEPS)
    told = []
    for count in (0, 20):
        add(engine, 1, request)
        add(engine, 2, Request(TokensPrompt((9,)), dataclasses.replace(asked, top_logprobs=count)))
        told.append(finished(run_all(engine)[1]).outputs[0].tokens)
    assert told[0].top_tokens
    assert told[0] == told[1]
