"""APD: a prefix of the proposals, as long as an autoregressive model agrees.

Source: arXiv:2506.00413; danielmisrael/apd dream/generation_utils.py a555561 (apd_sample).

From the cursor, which is the lowest masked position of the active block, the diffusion model
proposes tokens x for the masked positions up to max_lookahead ahead. The auxiliary model scores
them, given all that stands before and the proposals themselves. With R the mixture, the target

    R * log p(diffusion) + (1 - R) * log p(auxiliary)

is drawn from with the noise that drew x, which gives y. The proposals are kept as long as x = y.

- At the cursor y is committed, whether x agrees or not. R = 0 is then ordinary sampling from the
  auxiliary model, token for token (its noise, too, belongs to the position alone), and R = 1
  takes every proposal. The published code commits x at the cursor, so that its text is the
  diffusion model's for every R, and at a temperature above 0 it draws y without the noise.
- Where x and y first part, nothing is committed: the next step decides there, with the kept
  proposals in sight.
- Temperature, then top-k and top-p, are applied to the target as they are to any logits. At R = 1
  it is the diffusion model's distribution, at R = 0 the auxiliary model's.
- As published, the diffusion model does not see masks beyond the lookahead. When something else
  stands there (a suffix, another block's frozen text) it sees the whole canvas.
- Frozen text inside the window is given to both models and decides nothing.

The normalisers of both models are one constant per position. They do not move y, so the diffusion
model's logits stand in for its log-probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, Variant, strategy_of
from vdiff_grpc.engine.decoding.stages import filtered
from vdiff_grpc.engine.exact import stable
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.strategies import AdaptiveParallel


class AdaptiveParallelRule(Rule):
    """Parameters of a row: mixture, temperature, top_k, top_p."""

    name = AdaptiveParallel.NAME
    scores_proposals = True

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        masked = row.masked_in_block()
        end = int(masked[0]) + strategy_of(row, AdaptiveParallel).max_lookahead
        variant = row.variant(masked[masked < end], noise_step=0)
        if (row.state[end:] != State.MASKED).any():
            return (variant,)
        seen = np.flatnonzero(variant.position_ids < end)
        return (
            dataclasses.replace(
                variant,
                token_ids=variant.token_ids[seen],
                position_ids=variant.position_ids[seen],
            ),
        )

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [
            [
                strategy_of(row, AdaptiveParallel).mixture,
                self.temperature(row),
                row.params.top_k,
                row.params.top_p,
            ]
            for row in rows
        ]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        """Writes y, and its probability, in the place of x where that is committed."""
        proposed = candidates.token_ids
        target = _target_tokens(group, candidates)
        starts = torch.ones_like(group.segments, dtype=torch.bool)
        starts[1:] = group.segments[1:] != group.segments[:-1]
        parted = (proposed != target).long().cumsum(0)
        before = (parted - (proposed != target).long())[starts][group.segments]
        likelihood = candidates.logits.gather(1, target.unsqueeze(1)).squeeze(1)
        confidence = stable(torch.exp, likelihood - candidates.normaliser)
        proposed.copy_(torch.where(starts, target, proposed))
        candidates.confidence.copy_(torch.where(starts, confidence, candidates.confidence))
        return ((parted == before) | starts) * int(Action.UNMASK)


def _target_tokens(group: Group, candidates: Candidates) -> Tensor:
    """[num_candidates] y: drawn from the mixture with the noise of the proposals."""
    assert candidates.auxiliary is not None
    assert candidates.gumbel is not None
    mixture, temperature, top_k, top_p = (group.of_positions(column) for column in range(4))
    weight = mixture.unsqueeze(1)
    logits, auxiliary = candidates.logits, candidates.auxiliary
    mixed = weight * logits + (1 - weight) * auxiliary
    # 0 * -inf: an id that is banned stays so, one that the auxiliary model lacks does not
    # matter to a mixture without it
    mixed.masked_fill_(logits == -torch.inf, -torch.inf)
    mixed = torch.where(weight < 1, mixed, logits)
    divisor = torch.where(temperature > 0, temperature, 1).unsqueeze(1)
    scaled = filtered(mixed, temperature, top_k, top_p, some=group.filters)
    scaled += candidates.gumbel / divisor
    return torch.where(mixture < 1, scaled.argmax(dim=-1), candidates.token_ids)
