"""Stages and rules on small tensors."""

from __future__ import annotations

import numpy as np
import torch

from vdiff_grpc.engine.decoding.confidence_threshold import ConfidenceThresholdRule
from vdiff_grpc.engine.decoding.fixed_schedule import FixedScheduleRule
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.decoding.stages import Guidance, Sampling, ban_, draw, guide_
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows


def candidates(confidence: list[float], order: list[float] | None = None) -> Candidates:
    scores = torch.tensor(confidence)
    count = len(confidence)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Candidates(
        logits=scores.log().unsqueeze(1).expand(count, 4),
        normaliser=torch.zeros(count),
        token_ids=torch.arange(count),
        confidence=scores,
        order=torch.tensor(order) if order else torch.zeros(count),
        status=zeros,
        current=zeros,
        positions=torch.arange(count),
        variants=zeros,
    )


def group(segments: list[int], parameters: list[list[float]]) -> Group:
    return Group((), torch.tensor(segments), torch.tensor(parameters))


def test_ranks_count_within_a_row_and_ties_go_to_the_lower_position() -> None:
    ranks = group([0, 0, 0, 1, 1], [[0.0], [0.0]]).ranks(torch.tensor([0.5, 0.9, 0.5, 0.1, 0.1]))
    assert ranks.tolist() == [1, 0, 2, 0, 1]


def test_sums_are_each_rows_own() -> None:
    sums = group([0, 0, 2], [[0.0]] * 3).sums(torch.tensor([0.5, 0.25, 1.0]))
    assert sums.tolist() == [0.75, 0.0, 1.0]


def test_fixed_schedule_takes_each_rows_own_share() -> None:
    chosen = FixedScheduleRule().select(
        group([0, 0, 0, 1, 1, 1], [[2, 0], [1, 1]]),
        candidates([0.1, 0.9, 0.5, 0.9, 0.1, 0.1], [0, 0, 0, 0.1, 0.2, 0.8]),
    )
    assert chosen.tolist() == [0, 1, 1, 0, 0, 1]


def test_threshold_takes_all_that_are_confident_and_always_the_best() -> None:
    chosen = ConfidenceThresholdRule().select(
        group([0, 0, 0, 1, 1], [[0.5], [0.9]]), candidates([0.5, 0.4, 0.7, 0.2, 0.3])
    )
    assert chosen.tolist() == [1, 0, 1, 0, 1]


def sampling(top_k: list[int], top_p: list[float], temperature: float = 1.0) -> Sampling:
    count = len(top_k)
    noise = NoiseRows(
        np.arange(count, dtype=np.uint64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    )
    return Sampling(
        torch.arange(count),
        torch.full((count,), temperature),
        torch.tensor(top_k),
        torch.tensor(top_p),
        noise,
        filtered=True,
    )


def test_top_k_and_top_p_keep_the_smallest_sufficient_set() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    count = 3000
    logits = probabilities.log().repeat(count, 1)
    for top_k, top_p, kept in [(2, 1.0, {1, 3}), (0, 0.6, {1, 3}), (0, 0.4, {1}), (1, 1.0, {1})]:
        drawn = draw(logits.clone(), sampling([top_k] * count, [top_p] * count), CounterNoise())
        assert set(drawn.tolist()) == kept


def test_equal_logits_go_to_the_lower_id() -> None:
    logits = torch.zeros(16, 8)
    assert draw(logits, None, CounterNoise()).tolist() == [0] * 16
    drawn = draw(logits, sampling([1] * 16, [1.0] * 16), CounterNoise())
    assert drawn.tolist() == [0] * 16


def test_guidance_moves_away_from_the_unconditional_row() -> None:
    logits = torch.tensor([[1.0, 2.0], [5.0, 5.0], [0.0, 1.0]])
    guide_(logits, Guidance(torch.tensor([0]), torch.tensor([2]), torch.tensor([2.0])))
    assert logits.tolist() == [[3.0, 4.0], [5.0, 5.0], [0.0, 1.0]]


def test_banned_ids_are_never_drawn_and_end_ids_only_where_allowed() -> None:
    logits = torch.zeros(3, 4)
    ban_(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    assert draw(logits, None, CounterNoise()).tolist() == [1, 1, 2]
