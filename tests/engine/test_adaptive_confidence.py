"""Adaptive confidence: how many of the best are accepted, and that company changes nothing."""

from __future__ import annotations

import random

import pytest
import torch

from tests.engine.tools import add, finished, run, run_all, tiny_engine, trajectory
from vdiff_grpc.engine.decoding.adaptive_confidence import AdaptiveConfidenceRule, _limits
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import AdaptiveConfidence, ConfidenceThreshold
from vdiff_grpc.engine.types import Granularity, Request, RequestParams


def accepted(
    rows: list[list[float]], threshold: float, max_parallel: int = 1024
) -> list[list[int]]:
    """Per row of confidences, the places that the rule takes."""
    confidence = torch.tensor([c for row in rows for c in row])
    count = len(confidence)
    zeros = torch.zeros(count, dtype=torch.int64)
    candidates = Candidates(
        logits=torch.zeros(count, 2),
        normaliser=torch.zeros(count),
        token_ids=zeros,
        confidence=confidence,
        order=torch.zeros(count),
        status=zeros,
        current=zeros,
        positions=torch.arange(count),
        variants=zeros,
    )
    segments = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    limits = _limits(AdaptiveConfidence(threshold, max_parallel))
    group = Group((), segments, torch.tensor([limits] * len(rows)))
    actions = AdaptiveConfidenceRule().select(group, candidates).split([len(row) for row in rows])
    return [torch.nonzero(row).flatten().tolist() for row in actions]


def test_the_best_are_taken_while_their_product_is_at_least_the_threshold() -> None:
    row = [0.5, 0.99, 0.9, 0.95]  # in falling order the products are 0.99, 0.94, 0.85, 0.42
    assert accepted([row], 0.8) == [[1, 2, 3]]
    assert accepted([row], 0.9) == [[1, 3]]
    assert accepted([row], 0.4) == [[0, 1, 2, 3]]


def test_a_product_that_equals_the_threshold_is_enough() -> None:
    assert accepted([[0.5, 0.5, 0.5]], 0.25) == [[0, 1]]
    assert accepted([[1.0, 1.0, 0.999]], 1.0) == [[0, 1]]


def test_the_best_is_always_taken_and_no_more_than_max_parallel() -> None:
    assert accepted([[0.01, 0.02, 0.0]], 0.9) == [[1]]
    assert accepted([[0.0, 0.0]], 0.9) == [[0]]
    assert accepted([[1.0] * 5], 0.5, max_parallel=3) == [[0, 1, 2]]


def test_any_row_beside_any_others_takes_what_the_definition_says() -> None:
    rng = random.Random(4)
    rows = [
        [rng.uniform(0.3, 1.0) ** rng.choice([0.01, 0.1, 1]) for _ in range(rng.randint(1, 40))]
        for _ in range(200)
    ]
    for threshold in (0.9, 0.5, 0.05):
        expected = []
        for row in rows:
            product, taken = 1.0, []
            for place in sorted(range(len(row)), key=lambda i: -row[i]):
                product *= row[place]
                if taken and product < threshold:
                    break
                taken.append(place)
            expected.append(sorted(taken))
        assert accepted(rows, threshold) == expected
        assert [accepted([row], threshold)[0] for row in rows] == expected


def request(threshold: float, cfg_scale: float = 0.0) -> Request:
    params = RequestParams(
        max_new_tokens=20,
        block_length=8,
        temperature=0.4,
        cfg_scale=cfg_scale,
        seed=3,
        strategy=AdaptiveConfidence(threshold),
    )
    return Request(TokensPrompt((3, 1, 4, 1, 5)), params, granularity=Granularity.STEPS)


def test_the_events_are_the_same_alone_and_in_company() -> None:
    engine = tiny_engine(early_end=False)
    requests = [request(0.9), request(0.3), request(0.01), request(0.2, cfg_scale=1.5)]
    alone = [run(engine, given)[:-1] for given in requests]
    assert len({len(events) for events in alone}) > 1, "the threshold decides how many steps"
    for key, given in enumerate(requests):
        add(engine, key, given)
    other = RequestParams(
        max_new_tokens=30, temperature=1.0, seed=1, strategy=ConfidenceThreshold(0.5)
    )
    add(engine, 99, Request(TokensPrompt((7, 8)), other))
    together = run_all(engine)
    for key, expected in enumerate(alone):
        assert together[key][:-1] == expected


@pytest.mark.parametrize("max_parallel", [1, 4])
def test_frozen_text_stays_and_no_step_takes_more_than_max_parallel(max_parallel: int) -> None:
    prompt = InfillPrompt(((3, 1, 4), Hole(4), (15, 9), Hole(3)))
    strategy = AdaptiveConfidence(1e-9, max_parallel)
    params = RequestParams(block_length=7, strategy=strategy)
    events = run(tiny_engine(), Request(prompt, params))
    assert max(len(step) for step in trajectory(events)) == max_parallel
    assert finished(events).outputs[0].canvas[7:9] == (15, 9)
