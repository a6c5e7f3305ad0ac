"""Fast-dLLM's factor rule: the n most confident, while the n-th is at least 1 - factor / (n + 1).

Source: arXiv:2505.22618; ZHZisZZ/dllm dllm/pipelines/fastdllm/llada/sampler.py ca17675. The
variant of inclusionAI/dInfer, which takes a block's last position along when all others pass, is
not followed: it accepts a position of any confidence.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, strategy_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Factor


class FactorRule(Rule):
    """Parameter of a row: the factor."""

    name = Factor.NAME

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [[strategy_of(row, Factor).factor] for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        ranks = group.ranks(candidates.confidence)
        # The confidence falls with the rank and the bar rises: what passes is a prefix.
        bar = 1 - group.of_positions(0) / (ranks + 2)
        return ((ranks == 0) | (candidates.confidence >= bar)) * int(Action.UNMASK)
