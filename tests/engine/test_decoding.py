"""Stages and rules on small tensors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.engine.tools import GOLDEN, finished, run, tiny_engine
from vdiff_grpc.engine.decoding.confidence_threshold import ConfidenceThresholdRule
from vdiff_grpc.engine.decoding.fixed_schedule import FixedScheduleRule
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.decoding.stages import (
    Guidance,
    Sampling,
    ban_,
    draw,
    filtered,
    guide_,
    normaliser,
    normaliser_and_entropy,
    tile_rows,
)
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import (
    AdaptiveParallel,
    DreamOrder,
    DreamSchedule,
    LeftToRight,
    Strategy,
)
from vdiff_grpc.engine.types import Request, RequestParams


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


def test_counts_and_sums_are_each_rows_own() -> None:
    given = group([0, 0, 0, 2, 2], [[0.0]] * 3)
    assert given.counts(torch.tensor([True, False, True, True, False])).tolist() == [2, 0, 1]
    ranks, units = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([1, 2, 4, 8, 16])
    assert given.sums_before(ranks, units).tolist() == [6, 0, 2, 16, 0]


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


def test_a_filter_touches_no_other_row_and_depends_on_none() -> None:
    logits = torch.randn(5, 1003, generator=torch.Generator().manual_seed(0))
    heat, top_k = torch.tensor([0.0, 0.5, 1, 1, 2]), torch.tensor([0, 3, 0, 0, 7])
    top_p = torch.tensor([1.0, 1.0, 0.3, 1.0, 0.9])
    together = filtered(logits, heat, top_k, top_p, some=True)
    plain = filtered(logits, heat, top_k, top_p, some=False)
    assert torch.equal(together[[0, 3]], plain[[0, 3]])
    assert (together[1] > -torch.inf).sum() == 3
    for row in range(5):
        one = slice(row, row + 1)
        alone = filtered(logits[one], heat[one], top_k[one], top_p[one], some=True)
        assert torch.equal(alone, together[one])


@pytest.mark.parametrize("temperature", [1e-7, 1e-38, 5e-324])
@pytest.mark.parametrize(
    "strategy",
    [LeftToRight(), AdaptiveParallel(0.5), *(DreamSchedule(order) for order in DreamOrder)],
)
def test_a_temperature_that_float32_cannot_carry_is_greedy(
    strategy: Strategy, temperature: float
) -> None:
    engine = tiny_engine(aux_model_path=str(GOLDEN / "tiny-causal"))
    outputs = [
        finished(
            run(
                engine,
                Request(
                    TokensPrompt((1, 2, 3)),
                    RequestParams(max_new_tokens=8, temperature=heat, seed=1, strategy=strategy),
                ),
            )
        ).outputs[0]
        for heat in (0.0, temperature)
    ]
    assert outputs[0].canvas == outputs[1].canvas
    assert outputs[0].tokens.confidences == outputs[1].tokens.confidences


def test_equal_logits_go_to_the_lower_id() -> None:
    logits = torch.zeros(16, 8)
    assert draw(logits, None, CounterNoise()).tolist() == [0] * 16
    drawn = draw(logits, sampling([1] * 16, [1.0] * 16), CounterNoise())
    assert drawn.tolist() == [0] * 16


def test_confidence_is_normalised_over_what_is_banned_too() -> None:
    logits = 9 * torch.randn(32, 1003, generator=torch.Generator().manual_seed(0))
    logits[3, 5] = logits[4, 7] = 300.0  # a banned id, and a banned end, nearly certain
    expected = logits.double().logsumexp(-1)
    banned = ban_(logits, torch.tensor([5, 11]), torch.tensor([7]), torch.tensor([2, 4]))
    assert torch.isfinite(logits[:, 7]).sum() == 30
    assert normaliser(logits, banned).double() == pytest.approx(expected, abs=1e-4)


def test_a_normaliser_and_a_draw_are_the_same_alone_and_among_others() -> None:
    torch.manual_seed(0)
    logits = torch.randn(96, 33027)
    banned = logits[:, :0]
    address = sampling([0] * 96, [1.0] * 96, 0.7)
    among, drawn = normaliser(logits, banned), draw(logits, address, CounterNoise())
    for begin in (0, 32, 64):
        rows = slice(begin, begin + 32)
        alone = dataclasses.replace(
            sampling([0] * 32, [1.0] * 32, 0.7), noise=address.noise.part(rows)
        )
        assert torch.equal(normaliser(logits[rows], banned[rows]), among[rows])
        both = normaliser_and_entropy(logits[rows], banned[rows])
        assert torch.equal(both[0], among[rows])
        assert torch.equal(draw(logits[rows], alone, CounterNoise()), drawn[rows])


def test_a_tile_is_a_power_of_two_rows_that_fit_a_cache() -> None:
    widths = (97, 4_096, 20_000, 126_464, 10_000_000)
    assert [tile_rows(torch.empty(0, width)) for width in widths] == [32, 32, 8, 2, 2]
    wide = torch.empty(0, 126_464, device="meta")
    assert tile_rows(wide) == 128


def test_guidance_moves_away_from_the_unconditional_row() -> None:
    logits = torch.tensor([[1.0, 2.0], [5.0, 5.0], [0.0, 1.0]])
    guide_(logits, Guidance(torch.tensor([0]), torch.tensor([2]), torch.tensor([2.0])))
    assert logits.tolist() == [[3.0, 4.0], [5.0, 5.0], [0.0, 1.0]]


def test_banned_ids_are_never_drawn_and_end_ids_only_where_allowed() -> None:
    logits = torch.zeros(3, 4)
    ban_(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    assert draw(logits, None, CounterNoise()).tolist() == [1, 1, 2]


def test_a_confidence_has_the_same_bits_whether_a_neighbour_wants_entropies_or_not() -> None:
    """torch computes strided numbers by another formula: the normaliser must not be strided."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(64, 97, generator=generator) * 5
        banned = torch.randn(64, 2, generator=generator) * 5
        best = logits.amax(dim=-1)
        beside, entropies = normaliser_and_entropy(logits, banned)
        assert torch.equal((best - beside).exp_(), (best - normaliser(logits, banned)).exp_())
        assert beside.is_contiguous()
        assert entropies.is_contiguous()
