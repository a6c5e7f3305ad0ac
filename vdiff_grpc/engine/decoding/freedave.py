"""FreeDave's rule: several steps of the fixed schedule in one call, by drafts that are verified.

Source: arXiv:2510.00294; cychomatica/FreeDave generation/core.py 8b48121
(block_decode_with_full_attention_FreeDave), whose `draft_steps` counts the canvas itself: it is
`drafts` + 1. There a step fills one token; here it fills the schedule's share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vdiff_grpc.engine.columns import Ints
from vdiff_grpc.engine.decoding.rule import (
    Action,
    Candidates,
    Columns,
    Group,
    Rule,
    Variant,
    strategy_of,
)
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import FreeDave


@dataclass(frozen=True, slots=True)
class Draft:
    """What the last call predicts for the block's masks: columns, by falling confidence."""

    positions: Ints
    token_ids: Ints


class FreeDaveRule(Rule):
    """The fixed schedule (low confidence), token for token and step for step.

    Variant 0 is the canvas. Variant v is the canvas after v more steps, if the tokens and the
    order that the last call predicted hold; its noise is that of the step it stands for. Steps
    are taken from one variant after the other while the next one's canvas is what they lead to:
    every token comes from the logits of the very canvas that it would have had without drafts.
    The first call of a block has no drafts, and no draft goes past the block's last step.
    """

    name = FreeDave.NAME

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        variants = [row.variant(row.masked_in_block())]
        if row.memory is None:
            return tuple(variants)
        draft: Draft = row.memory
        num_filled = 0
        for ahead in range(1, strategy_of(row, FreeDave).drafts + 1):
            num_filled += row.scheduled_commits(ahead=ahead - 1)
            if num_filled >= len(draft.positions):
                break
            guess = row.ids.copy()
            guess[draft.positions[:num_filled]] = draft.token_ids[:num_filled]
            masked = np.sort(draft.positions[num_filled:])
            variants.append(row.variant(masked, guess, row.step + ahead))
        return tuple(variants)

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        """Everything: which of it is taken is settled on the host."""
        return candidates.is_masked * int(Action.UNMASK)

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        steps: list[Columns] = []
        num_variants = int(proposals.variants[-1]) + 1
        num_filled = 0
        while True:
            step = len(steps)
            predicted = proposals.take(np.flatnonzero(proposals.variants == step))
            order = np.argsort(-predicted.confidences, kind="stable")  # ties: lower position
            share = row.scheduled_commits(ahead=step)
            taken = predicted.take(np.sort(order[:share]))
            steps.append(taken)
            if step + 1 == num_variants or not _holds(row.memory, num_filled, taken):
                break
            num_filled += share
        rest = predicted.take(order[share:])
        row.memory = Draft(rest.positions, rest.token_ids)
        return steps


def _holds(draft: Draft, num_filled: int, taken: Columns) -> bool:
    """Whether the step fills what the draft has next, after its first `num_filled`."""
    drafted = slice(num_filled, num_filled + len(taken.positions))
    order = np.argsort(draft.positions[drafted])
    return np.array_equal(draft.positions[drafted][order], taken.positions) and np.array_equal(
        draft.token_ids[drafted][order], taken.token_ids
    )
