"""As many of the most confident as are likely to be right together.

Our own definition, of what APD (arXiv:2506.00413) is after, without a second model: with the
confidences in falling order, the n best while their product is at least a threshold, at most
max_parallel of them and always the best. The product is the probability that all n are right if
positions err independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.exact import stable
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import AdaptiveConfidence

# Doubts are counted in units of 2^-20 nats. Sums of whole numbers are exact in any order, so
# that the running sum of one row cannot depend on the rows before it.
_UNIT = 2.0**-20
_MOST = 100.0  # nats; float32 knows no smaller probability


class AdaptiveConfidenceRule(Rule):
    """Parameters of a row: most units of doubt together, and most positions."""

    name = AdaptiveConfidence.NAME

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_limits(strategy_of(row, AdaptiveConfidence)) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        ranks = group.ranks(candidates.confidence)
        nats = stable(torch.log, candidates.confidence).neg().clamp(0, _MOST)
        doubt = nats.div(_UNIT).floor().long()
        together = group.sums_before(ranks, doubt) + doubt
        accepted = (together <= group.of_positions(0)) & (ranks < group.of_positions(1))
        return (accepted | (ranks == 0)) * int(Action.UNMASK)


def _limits(strategy: AdaptiveConfidence) -> list[float]:
    return [math.ceil(-math.log(strategy.threshold) / _UNIT), strategy.max_parallel]
