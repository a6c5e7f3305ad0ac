"""What a row in haste fills beyond its rule's own choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group

# Predictions from here on may be equal: both are sure of themselves.
_SURE = 0.98


def hasten(group: Group, candidates: Candidates, actions: Tensor, scores: Tensor) -> Tensor:
    """[num_candidates] the actions, with Action.HURRY where a row's haste fills a mask besides.

    All predictions from its threshold on, rivals aside; then, as long as it has fewer than its
    floor, the next by the rule's own scores, rivals last. Rows without haste stay as they are.
    """
    haste = [(row.haste.threshold, row.haste.floor) for row in group.rows]
    limits = torch.tensor(haste, dtype=torch.float32).to(scores.device, non_blocking=True)
    chosen = actions == int(Action.UNMASK)
    open_ = candidates.is_masked & ~chosen
    rivals = _rivals(group, candidates, chosen)
    hurried = open_ & ~rivals & (candidates.confidence >= limits[:, 0][group.segments])
    for allowed in (~rivals, rivals):
        missing = limits[:, 1] - group.counts(chosen | hurried)
        left = open_ & ~hurried & allowed
        ranks = group.ranks(scores.masked_fill(~left, -torch.inf))
        hurried = hurried | (left & (ranks < missing[group.segments]))
    return torch.where(hurried, int(Action.HURRY), actions)


def _rivals(group: Group, candidates: Candidates, chosen: Tensor) -> Tensor:
    """[num_candidates] bool: what is not sure, and says what another place of its row says more surely.

    Two places that both claim a token often depend on each other: a step later, when the one has
    it, the other may say something else. End tokens follow one another anyway.
    """
    ids, vocab_size = candidates.token_ids, candidates.logits.shape[1]
    rank = candidates.confidence.masked_fill(~candidates.is_masked, -1.0)
    rank = rank.masked_fill(chosen, 2.0)
    claims = group.segments.long() * vocab_size + ids
    order = torch.argsort(rank, descending=True, stable=True)
    order = order[torch.argsort(claims[order], stable=True)]
    follows = torch.zeros_like(chosen)
    follows[order[1:]] = claims[order[1:]] == claims[order[:-1]]
    ends = torch.tensor(group.rows[0].info.end_token_ids, dtype=ids.dtype)
    is_end = torch.isin(ids, ends.to(ids.device, non_blocking=True))
    return follows & ~is_end & (candidates.confidence < _SURE)
