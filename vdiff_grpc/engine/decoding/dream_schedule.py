"""Dream's four orders over a schedule that follows t from 1 to 1e-3.

Source: arXiv:2508.15487; ZHZisZZ/dllm dllm/pipelines/dream/models/generation_utils.py ca17675,
batch 1. With s the time after t, a step takes int(masks * (1 - s / t)) positions and the last
step all that is left. As s / t is a little above the even share, a block of as many steps as
positions commits nothing in its first step and two positions in its last.

Confidence is that of the distribution that is drawn from: after temperature, top-k and top-p.
The time runs once over each block: with one block this is the published sampler.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import lru_cache

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.decoding.stages import entropy, filtered, tile_rows
from vdiff_grpc.engine.exact import stable
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import DreamOrder, DreamSchedule

_LAST_TIME = 1e-3
_ORDERS = tuple(DreamOrder)
_TINY = 2.0**-25  # half of the smallest uniform above 0


class DreamScheduleRule(Rule):
    """Chooses positions by a score, or (order origin) each by its own chance.

    With an order temperature the published sampler draws k positions, without replacement, from
    softmax(score / order_temperature). Here the k highest of score / order_temperature plus
    Gumbel noise are taken, which has the same distribution (arXiv:1903.06059).

    Parameters of a row: number of the order, share of the masks, positions to take, order
    temperature, temperature, top_k, top_p.
    """

    name = DreamSchedule.NAME

    def draws_order(self, row: Sequence) -> bool:
        strategy = strategy_of(row, DreamSchedule)
        return strategy.order is DreamOrder.ORIGIN or strategy.order_temperature != 0

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_parameters(row, self.temperature(row)) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        order, share, count = (group.of_positions(column) for column in range(3))
        by_chance = candidates.order < share
        best = group.ranks(self.scores(group, candidates)) < count
        origin = order == _ORDERS.index(DreamOrder.ORIGIN)
        return torch.where(origin, by_chance, best) * int(Action.UNMASK)

    def scores(self, group: Group, candidates: Candidates) -> Tensor:
        order, heat = group.of_positions(0), group.of_positions(3)
        scores = _scores(group, candidates)
        exponential = -stable(torch.log, candidates.order.clamp(min=_TINY))
        gumbel = -stable(torch.log, exponential)
        scores = torch.where(heat > 0, scores / torch.where(heat > 0, heat, 1) + gumbel, scores)
        origin = order == _ORDERS.index(DreamOrder.ORIGIN)
        return torch.where(origin, -candidates.order, scores)


def _scores(group: Group, candidates: Candidates) -> Tensor:
    """[num_candidates] the higher, the sooner."""
    order, temperature, top_k, top_p = (group.of_positions(column) for column in (0, 4, 5, 6))
    scores = torch.zeros_like(candidates.confidence)
    wanted = {strategy_of(row, DreamSchedule).order for row in group.rows} - {DreamOrder.ORIGIN}
    if not wanted:
        return scores
    size = tile_rows(candidates.logits)
    for begin in range(0, len(scores), size):
        tile = slice(begin, begin + size)
        limits = temperature[tile], top_k[tile], top_p[tile]
        logits = filtered(candidates.logits[tile], *limits, some=group.filters)
        for kind in wanted:
            found = _scores_by(kind, logits, candidates.token_ids[tile])
            asked = order[tile] == _ORDERS.index(kind)
            scores[tile] = torch.where(asked, found, scores[tile])
    return scores


def _scores_by(kind: DreamOrder, logits: Tensor, token_ids: Tensor) -> Tensor:
    if kind is DreamOrder.ENTROPY:
        return -entropy(logits)
    probabilities = logits.softmax(dim=-1)
    if kind is DreamOrder.MASKGIT_PLUS:
        return probabilities.gather(1, token_ids.unsqueeze(1)).squeeze(1)
    likely = probabilities.topk(2, dim=-1).values
    return likely[:, 0] - likely[:, 1]


def _parameters(row: Sequence, temperature: float) -> list[float]:
    strategy = strategy_of(row, DreamSchedule)
    if row.request.growing:
        share, count = 0.0, row.scheduled_commits()
    else:
        shares = _shares(row.steps_in_block)[row.step_in_block]
        masks = torch.tensor(len(row.masked_in_block()))
        share, count = float(shares), int(masks * shares)
    return [
        _ORDERS.index(strategy.order),
        share,
        count,
        strategy.order_temperature,
        temperature,
        row.params.top_k,
        row.params.top_p,
    ]


@lru_cache(maxsize=256)
def _shares(steps: int) -> Tensor:
    """[steps] float32, on the host: 1 - s / t of each step, and 1 for the last.

    In the reference's own arithmetic: torch.linspace in float32 decides where a product is cut.
    """
    times = torch.linspace(1, _LAST_TIME, steps + 1)
    shares = 1 - times[1:] / times[:-1]
    shares[-1] = 1
    return shares
