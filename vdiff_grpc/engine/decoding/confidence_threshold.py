"""Fast-dLLM's rule: every prediction at least tau confident, and always the best one.

Source: arXiv:2505.22618; NVlabs/Fast-dLLM llada/generate.py 24cc59e (get_transfer_index), which
compares in float64; here the comparison is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import ConfidenceThreshold


class ConfidenceThresholdRule(Rule):
    """Parameter of a row: tau."""

    name = ConfidenceThreshold.NAME

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [[strategy_of(row, ConfidenceThreshold).threshold] for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        confident = candidates.confidence >= group.of_positions(0)
        return (confident | (group.ranks(candidates.confidence) == 0)) * int(Action.UNMASK)
