"""What a decoding rule is given and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.columns import Action, Columns, Status, Variant
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Strategy

__all__ = [
    "COLDEST",
    "Action",
    "Candidates",
    "Columns",
    "Group",
    "Rule",
    "Status",
    "Variant",
    "strategy_of",
]

COLDEST = 1e-6  # a lower temperature is greedy, to the precision of float32

_S = TypeVar("_S", bound=Strategy)


def strategy_of(row: Sequence, kind: type[_S]) -> _S:
    """The row's strategy, of the rule's own kind: validation has filled in every field."""
    strategy = row.params.strategy
    assert isinstance(strategy, kind)
    return strategy


@dataclass(frozen=True, slots=True)
class Candidates:
    """Predictions for the positions that a rule wanted; columns [num_candidates].

    Sorted by row, then by variant of the row's plan, then by canvas position.

    logits: [num_candidates, vocab_size] float32, guided, untempered, banned ids -inf.
    normaliser: logsumexp before bans: exp(logits - normaliser) is the probability.
    token_ids: drawn. A rule may put others in their place, with their confidence.
    confidence: probability of the drawn token, untempered, float32.
    order: uniforms in [0, 1) for the rows whose rule says `draws_order`; else of no meaning.
    status: of Status. current: token on the canvas now. positions: on the canvas.
    variants: number of the variant in the row's plan.
    auxiliary: [num_candidates, vocab_size] log-probabilities of the auxiliary model, given all
    that stands before the position and the row's drawn tokens. Only for `scores_proposals`.
    gumbel: [num_candidates, vocab_size] temperature times the Gumbel noise that drew token_ids;
    0 at temperature 0. Only for `scores_proposals`.
    entropy: [num_candidates] in nats, untempered, of what is not banned. Only for `wants_entropy`.
    forced: [num_candidates] where a constraint leaves no other token; None: nowhere.
    """

    logits: Tensor
    normaliser: Tensor
    token_ids: Tensor
    confidence: Tensor
    order: Tensor
    status: Tensor
    current: Tensor
    positions: Tensor
    variants: Tensor
    auxiliary: Tensor | None = None
    gumbel: Tensor | None = None
    entropy: Tensor | None = None
    forced: Tensor | None = None

    @property
    def is_masked(self) -> Tensor:
        return self.status == Status.MASKED

    @property
    def is_committed(self) -> Tensor:
        return self.status == Status.COMMITTED

    def part(self, begin: int, end: int) -> Candidates:
        """A slice of the lines, as views, without what a slice asks for by itself."""
        return Candidates(
            self.logits[begin:end],
            self.normaliser[begin:end],
            self.token_ids[begin:end],
            self.confidence[begin:end],
            self.order[begin:end],
            self.status[begin:end],
            self.current[begin:end],
            self.positions[begin:end],
            self.variants[begin:end],
            entropy=None if self.entropy is None else self.entropy[begin:end],
            forced=None if self.forced is None else self.forced[begin:end],
        )

    def scored(self, auxiliary: Tensor, gumbel: Tensor) -> Candidates:
        """With what `scores_proposals` asks for."""
        return dataclasses.replace(self, auxiliary=auxiliary, gumbel=gumbel)


@dataclass(frozen=True, slots=True)
class Group:
    """All rows of one step that use the same rule.

    segments: [num_candidates] int64, the row of each candidate, from 0, ascending.
    parameters: [num_rows, num_parameters] float32.
    forced: as in Candidates: filled in any case, so that they come last of all.
    """

    rows: tuple[Sequence, ...]
    segments: Tensor
    parameters: Tensor
    forced: Tensor | None = None

    def of_positions(self, column: int) -> Tensor:
        """A row parameter, repeated for each of the row's candidates."""
        return self.parameters[:, column][self.segments]

    def ranks(self, scores: Tensor) -> Tensor:
        """Place of each candidate in its row by falling score, from 0; ties: lower position.

        No row's ranks depend on another's. What must not be taken has the score -inf.
        """
        if self.forced is not None:
            scores = scores.masked_fill(self.forced, -torch.inf)
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[torch.argsort(self.segments[order], stable=True)]
        places = torch.arange(len(order), device=order.device) - self._starts
        return torch.empty_like(order).scatter_(0, order, places)

    def counts(self, where: Tensor) -> Tensor:
        """[num_rows] how many of each row's candidates. Does not wait for the device."""
        counts = self.segments.new_zeros(len(self.parameters))
        return counts.scatter_add_(0, self.segments, where.long())

    def sums_before(self, ranks: Tensor, units: Tensor) -> Tensor:
        """[num_candidates] the sum of the row's units of lower rank.

        Units are whole numbers: their sum does not depend on the rows before.
        """
        starts = self._starts
        places = starts + ranks
        by_rank = torch.empty_like(units).scatter_(0, places, units)
        before = by_rank.cumsum(0) - by_rank
        return before[places] - before[starts]

    @property
    def filters(self) -> bool:
        """Whether some row has top_k or top_p."""
        return any(row.params.top_k > 0 or row.params.top_p < 1 for row in self.rows)

    @property
    def _starts(self) -> Tensor:
        """[num_candidates] where each one's row begins."""
        return torch.searchsorted(self.segments, self.segments)


class Rule:
    """Decides what a step changes. Stateless: one instance serves all rows.

    name: the case of the contract's `strategy`.
    scores_proposals: wants Candidates.auxiliary and Candidates.gumbel.
    wants_entropy: wants Candidates.entropy.
    noisy_canvas: what is masked is computed as uniform random tokens.
    """

    name: str
    scores_proposals: bool = False
    wants_entropy: bool = False
    noisy_canvas: bool = False

    def begin(self, row: Sequence) -> None:
        """A row has entered a block: its memory is as the rule wants it there."""
        row.memory = None

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """What this step computes: one variant of the canvas, or more."""
        return (row.variant(row.masked_in_block()),)

    def draws_order(self, row: Sequence) -> bool:
        """Whether this row's choice needs Candidates.order."""
        return False

    def temperature(self, row: Sequence) -> float:
        """Of this step's draws: 0, or at least COLDEST."""
        asked = row.params.temperature
        return asked if asked >= COLDEST else 0.0

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        """This step's parameters of each row, from its request and its progress."""
        return [[] for _ in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        """[num_candidates] int64 of Action, over all rows of the group at once."""
        raise NotImplementedError

    def scores(self, group: Group, candidates: Candidates) -> Tensor:
        """[num_candidates] the higher, the sooner: the order in which a row in haste fills more."""
        return candidates.confidence

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        """On the host: the logical steps that this forward pass gives, each its changes."""
        return [proposals.take(np.flatnonzero(proposals.actions))]  # KEEP is 0

    def is_block_done(self, row: Sequence) -> bool:
        """Asked when a step's changes have been applied; `step_in_block` counts it already."""
        return not len(row.masked_in_block())
