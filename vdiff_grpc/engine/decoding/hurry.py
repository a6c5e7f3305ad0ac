"""What a row in haste fills beyond its rule's own choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group


def hasten(group: Group, candidates: Candidates, actions: Tensor, scores: Tensor) -> Tensor:
    """[num_candidates] the actions, with Action.HURRY where a row's haste fills a mask besides.

    All predictions from its threshold on; then, as long as it has fewer than its floor, the next
    by the rule's own scores. Rows without haste stay as they are.
    """
    haste = [(row.haste.threshold, row.haste.floor) for row in group.rows]
    limits = torch.tensor(haste, dtype=torch.float32).to(scores.device, non_blocking=True)
    chosen = actions == int(Action.UNMASK)
    open_ = candidates.is_masked & ~chosen
    sure = open_ & (candidates.confidence >= limits[:, 0][group.segments])
    missing = limits[:, 1] - group.counts(chosen | sure)
    left = open_ & ~sure
    ranks = group.ranks(scores.masked_fill(~left, -torch.inf))
    more = left & (ranks < missing[group.segments])
    return torch.where(sure | more, int(Action.HURRY), actions)
