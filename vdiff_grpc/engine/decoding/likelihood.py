"""No strategy's rule: that of a finished row whose likelihood is being estimated. Changes nothing.

What is estimated, and from which passes: engine/likelihood.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Candidates, Columns, Group, Rule, Variant
from vdiff_grpc.engine.likelihood import Scoring
from vdiff_grpc.engine.sequence import Sequence


class LikelihoodRule(Rule):
    """Reads log-probabilities of the canvas's own tokens at positions that a variant masks."""

    name = "likelihood"

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        return _scoring(row).plan(row)

    def temperature(self, row: Sequence) -> float:
        return 0.0

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        """In place of a confidence the host gets the logarithm."""
        likelihood = candidates.logits.gather(1, candidates.current.unsqueeze(1)).squeeze(1)
        candidates.confidence.copy_(likelihood - candidates.normaliser)
        return torch.zeros_like(candidates.token_ids)

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        _scoring(row).note(proposals.confidences)
        return []


def _scoring(row: Sequence) -> Scoring:
    assert isinstance(row.memory, Scoring), "the answer is finished"
    return row.memory
