"""WINO's rule: accepts widely, and masks again what a leave-one-out look does not confirm.

Source: openreview.net XtLQHlNLxy; Feng-Hong/WINO-DLLM LLaDA/decoding.py 9549a1d (decoding_wino).

Behind the canvas stands a shadow of the active block: a mask for each of its positions, with the
same position ids. A shadow sees the canvas but for the token that it stands for, and the other
shadows; the canvas sees no shadow. So the shadow of a filled position says how likely its token
is, given all the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.attention import FULL, shadow
from vdiff_grpc.engine.decoding.rule import (
    Action,
    Candidates,
    Columns,
    Group,
    Rule,
    Variant,
    strategy_of,
)
from vdiff_grpc.engine.exact import stable
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Wino

_FIRST_LIMIT = 30  # what the step before a block's first one is taken to have accepted


class WinoRule(Rule):
    """For full attention without a shift.

    Parameters of a row: the thresholds of filling and of keeping; how many masks may be filled,
    and how many tokens masked again, in this step.

    A step fills the masks whose confidence is above the one threshold, at least the best and at
    most 7/10 of the masks, within 5 and 20. If it fills more than one it also masks again the
    block's tokens that are less likely than the other, the least likely first: fewer than the
    step before has filled. So every block ends, after at most as many steps as it has positions.

    A row remembers how many masks its last step has filled.
    """

    name = Wino.NAME

    def begin(self, row: Sequence) -> None:
        row.memory = _FIRST_LIMIT

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """The canvas with a shadow of the block; without one where nothing can be masked again."""
        masked = row.masked_in_block()
        canvas = row.variant(masked)
        assert canvas.rule == FULL, "shadows are for full attention"
        assert row.shift == 0, "a shadow predicts its own position"
        if len(masked) == 1 or _limit(row) == 0 or not len(row.committed_in_block()):
            return (canvas,)
        block = row.block_positions()
        shadows = len(row.ids) + np.arange(len(block))
        return (
            dataclasses.replace(
                canvas,
                token_ids=np.append(row.ids, np.full(len(block), row.mask_token_id)),
                position_ids=np.append(row.position_ids, block),
                rule=shadow(block.tolist()),
                heads=np.where(np.isin(block, masked), block, shadows),
                positions=block,
            ),
        )

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_parameters(row) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        threshold, threshold_back, most, limit = (group.of_positions(i) for i in range(4))
        masked, confidence = candidates.is_masked, candidates.confidence
        ranks = group.ranks(confidence.masked_fill(~masked, -torch.inf))
        sure = (confidence > threshold) & (ranks < most)
        fills = masked & (sure | (ranks == 0))
        many = group.counts(fills)[group.segments] > 1
        kept = _probability_of_current(candidates)
        doubtful = candidates.is_committed & (kept < threshold_back) & many
        remasks = doubtful & (group.ranks((-kept).masked_fill(~doubtful, -torch.inf)) < limit)
        return fills * int(Action.UNMASK) + remasks * int(Action.REMASK)

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        row.memory = int(np.count_nonzero(proposals.actions == Action.UNMASK))
        return super().settle(row, proposals)


def _probability_of_current(candidates: Candidates) -> Tensor:
    """[n] of the token that the canvas has now, untempered; 0 for a mask, which is never drawn."""
    likelihood = candidates.logits.gather(1, candidates.current.unsqueeze(1)).squeeze(1)
    return stable(torch.exp, likelihood - candidates.normaliser)


def _limit(row: Sequence) -> int:
    """Most tokens that this step may mask again."""
    assert isinstance(row.memory, int), "begin has been called"
    return row.memory - 1


def _parameters(row: Sequence) -> list[float]:
    strategy = strategy_of(row, Wino)
    most = min(max(len(row.masked_in_block()) * 7 // 10, 5), 20)
    return [strategy.threshold, strategy.threshold_back, most, _limit(row)]
