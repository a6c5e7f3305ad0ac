"""LocalLeap's rule: confident anchors, and what lies near them by a relaxed threshold.

Source: arXiv:2510.07081; friedrichor/LocalLeap llada/generate.py (get_transfer_index), as kept in
ZitongWang018/dlm-seq experiments/localleap/generate.py 1e1b143. It compares in float64; here the
comparison is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import LocalLeap

_ROW = 2**32  # between the keys of two rows: more than any canvas and radius


class LocalLeapRule(Rule):
    """Parameters of a row: the threshold of anchors, that of their neighbours, and the radius.

    A prediction at least as confident as the threshold is an anchor. Within the radius of an
    anchor, counted in canvas positions, the relaxed threshold decides. The best prediction is
    always taken. Anchors and neighbours are masked positions of the active block: what is
    already filled is no anchor.
    """

    name = LocalLeap.NAME

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_parameters(row) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        confidence = candidates.confidence
        threshold, relaxed, radius = (group.of_positions(column) for column in range(3))
        keys = group.segments * _ROW + candidates.positions  # ascending
        near = _is_near(keys, confidence >= threshold, radius.long())
        sure = confidence >= torch.where(near, relaxed, threshold)
        return (sure | (group.ranks(confidence) == 0)) * int(Action.UNMASK)


def _is_near(keys: Tensor, anchors: Tensor, radius: Tensor) -> Tensor:
    """[n] bool: an anchor lies within the radius. All [n]: keys int64, ascending; bool; int64."""
    before = torch.nn.functional.pad(anchors.cumsum(0), (1, 0))  # anchors before each candidate
    begins = torch.searchsorted(keys, keys - radius)
    ends = torch.searchsorted(keys, keys + radius, right=True)
    return before[ends] > before[begins]


def _parameters(row: Sequence) -> list[float]:
    strategy = strategy_of(row, LocalLeap)
    return [strategy.threshold, strategy.relaxed_threshold, strategy.radius]
