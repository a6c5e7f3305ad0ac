"""SDAR's dynamic rule: all above tau when they are as many as the schedule asks, else its share.

Source: arXiv:2510.06303; JetAstra/SDAR generate.py c2041a8 (low_confidence_dynamic). There the
share counts the whole block; here, like every schedule, the block's masks, so that a block that
holds the end of the prompt is not hurried.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import DynamicThreshold


class DynamicThresholdRule(Rule):
    """Parameters of a row: tau, and the schedule's share of this step."""

    name = DynamicThreshold.NAME

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [
            [strategy_of(row, DynamicThreshold).threshold, row.scheduled_commits()] for row in rows
        ]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        confident = candidates.confidence > group.of_positions(0)
        enough = group.counts(confident) >= group.parameters[:, 1]
        share = group.ranks(candidates.confidence) < group.of_positions(1)
        return torch.where(enough[group.segments], confident, share) * int(Action.UNMASK)
