"""What a decoding rule is given and what it answers."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vdiff_grpc.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prediction for every position that may be filled now: columns [num_positions].

    Sorted by row, and within a row by canvas position.
    confidence: probability of the drawn token, untempered, float32.
    order: uniforms in [0, 1) for the rows whose rule says `draws_order`; else of no meaning.
    """

    token_ids: Tensor
    confidence: Tensor
    order: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """All rows of one step that use the same rule.

    segments: [num_positions] int64, the row of each candidate, from 0, ascending.
    parameters: [num_rows, rule.num_parameters] float32.
    """

    segments: Tensor
    parameters: Tensor

    def of_positions(self, column: int) -> Tensor:
        """A row parameter, repeated for each of the row's candidates."""
        return self.parameters[:, column][self.segments]

    def ranks(self, scores: Tensor) -> Tensor:
        """Place of each candidate in its row by falling score, from 0; ties: lower position.

        No row's ranks depend on another's.
        """
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[torch.argsort(self.segments[order], stable=True)]
        counts = torch.bincount(self.segments, minlength=len(self.parameters))
        starts = counts.cumsum(0) - counts
        places = torch.arange(len(order), device=order.device) - starts[self.segments[order]]
        return torch.empty_like(order).scatter_(0, order, places)


class Rule(Protocol):
    """Decides which candidates are committed. Stateless: one instance serves all rows."""

    @property
    def name(self) -> str:
        """The case of the contract's `strategy`."""
        ...

    def draws_order(self, row: Sequence) -> bool:
        """Whether this row's choice needs Candidates.order."""
        ...

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        """This step's parameters of each row, from its request and its progress."""
        ...

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        """[num_positions] bool: what is committed. At least progress must be possible."""
        ...
