"""One position at a time, the lowest first.

On a causal model this is ordinary sampling. Every position is decided once, so its noise is
addressed by the position alone (step 0): a rule that decides several at once, as
`adaptive_parallel` does, can then draw the very same text.
"""

from __future__ import annotations

from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, Variant
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import LeftToRight


class LeftToRightRule(Rule):
    """Looks at one position and commits it; a row in haste at several."""

    name = LeftToRight.NAME

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        return (row.variant(row.masked_in_block()[: max(1, row.haste.floor)], noise_step=0),)

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        return (group.ranks(self.scores(group, candidates)) == 0) * int(Action.UNMASK)

    def scores(self, group: Group, candidates: Candidates) -> Tensor:
        return -candidates.positions.float()
