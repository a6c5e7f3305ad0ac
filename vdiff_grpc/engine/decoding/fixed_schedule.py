"""LLaDA's rule: an even share of the block's masks at every step.

Source: arXiv:2502.09992; ML-GSAI/LLaDA generate.py b7e6c35. There the confidence is the
untempered softmax probability of the drawn token, or uniform noise ("random" remasking).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import FixedSchedule, Remasking


class FixedScheduleRule(Rule):
    """Parameters of a row: how many to commit, and whether at random."""

    name = FixedSchedule.NAME

    def draws_order(self, row: Sequence) -> bool:
        return _is_random(row)

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [[row.scheduled_commits(), _is_random(row)] for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        return (group.ranks(self.scores(group, candidates)) < group.of_positions(0)) * int(
            Action.UNMASK
        )

    def scores(self, group: Group, candidates: Candidates) -> Tensor:
        at_random = group.of_positions(1) > 0
        return torch.where(at_random, candidates.order, candidates.confidence)


def _is_random(row: Sequence) -> bool:
    return strategy_of(row, FixedSchedule).remasking is Remasking.RANDOM
