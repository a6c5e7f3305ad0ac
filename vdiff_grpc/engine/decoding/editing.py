"""LLaDA2.1's rule: fills what it is sure of, and replaces what it now sees otherwise.

Source: arXiv:2602.08676; ZHZisZZ/dllm dllm/pipelines/llada21/models/modeling_llada21_moe.py
ca17675 (generate, with num_to_transfer 1), and dllm/pipelines/llada21/sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import (
    Action,
    Candidates,
    Columns,
    Group,
    Rule,
    Status,
    Variant,
    strategy_of,
)
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Editing


@dataclass(slots=True)
class _Progress:
    """Of a row in its block.

    post_steps: steps so far that began with nothing masked.
    at_rest: the last step began with nothing masked and changed nothing.
    """

    post_steps: int = 0
    at_rest: bool = False


class EditingRule(Rule):
    """Parameters of a row: the thresholds of filling and of replacing.

    A step fills the masks whose confidence is above the one, at least the best; and replaces the
    block's tokens for which it draws another whose confidence is above the other. Full blocks
    get further steps until one changes nothing, or max_post_steps have been made: at least one,
    unless that is 0, since a step that fills the last mask is not yet one of them.

    Confidence is untempered, as everywhere here; the reference's is tempered above temperature 0.
    """

    name = Editing.NAME

    def begin(self, row: Sequence) -> None:
        row.memory = _Progress()

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """Logits of the whole block: its tokens may be replaced."""
        return (row.variant(row.block_positions()),)

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_thresholds(row) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        confidence, masked = candidates.confidence, candidates.status == Status.MASKED
        ranks = group.ranks(confidence.masked_fill(~masked, -torch.inf))
        fills = masked & ((confidence > group.of_positions(0)) | (ranks == 0))
        changed = candidates.token_ids != candidates.current
        sure = confidence > group.of_positions(1)
        edits = (candidates.status == Status.COMMITTED) & changed & sure
        return fills * int(Action.UNMASK) + edits * int(Action.REVISE)

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        changes = proposals.take(proposals.actions != Action.KEEP)
        began_full = not np.any(proposals.actions == Action.UNMASK)  # else the best was filled
        progress = _progress(row)
        progress.post_steps += began_full
        progress.at_rest = began_full and not len(changes)
        return [changes]

    def is_block_done(self, row: Sequence) -> bool:
        if len(row.masked_in_block()):
            return False
        progress = _progress(row)
        return progress.at_rest or progress.post_steps >= strategy_of(row, Editing).max_post_steps


def _progress(row: Sequence) -> _Progress:
    assert isinstance(row.memory, _Progress), "begin has been called"
    return row.memory


def _thresholds(row: Sequence) -> list[float]:
    strategy = strategy_of(row, Editing)
    return [strategy.threshold, strategy.edit_threshold]
