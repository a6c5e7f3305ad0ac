"""KLASS's rule: confident predictions whose distribution has come to rest.

Source: arXiv:2511.05664; shkim0116/KLASS src/model/llada_klass.py ad87ecb
(stable_confident_decode, alg "klass"), which computes in float64; here it is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff_grpc.engine.columns import Ints
from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, Variant, strategy_of
from vdiff_grpc.engine.decoding.stages import tile_rows
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Klass
from vdiff_grpc.engine.types import AttentionPattern

# The reference adds 1e-12 to probabilities before it takes their logarithm.
_LOWEST = math.log(1e-12)


@dataclass(slots=True)
class _Past:
    """What a row remembers of its last call.

    positions: [n] its candidates, ascending. log_probabilities: [n, vocab_size] float32, on the
    device; at least _LOWEST. calm: [n] int64, calls of the active block in a row, up to the last,
    that had moved the distribution by less than kl_threshold; 0 beyond the active block.
    """

    positions: Ints
    log_probabilities: Tensor
    calm: Tensor


class KlassRule(Rule):
    """Parameters of a row: the threshold, and how many are taken when none is ready.

    Ready is a prediction whose confidence is above the threshold, while KL(now, a call ago), in
    nats, has been below kl_threshold at each of the last `history` calls of its block. All that
    are ready are taken; if none is, the schedule's share of the most confident. Past the
    schedule's end the last step's share goes on; the reference leaves the rest masked.

    A block's first call is compared with the last call of the block before, as in the
    reference: there the next block's positions are looked at too. No others are needed: KL values
    of before the block never count, since as many calls of it as `history` are asked for; and
    every block has a call of its own, so the one after the next is never compared with this
    one. Which call is the last is not known before it is made, but it can only be one in which
    something can be ready, or the share is all that is left: only then are they asked for. The
    first block of all, and each one where attention does not reach later blocks, is
    compared with probability 0 everywhere: far from rest.

    A row remembers as many float32 distributions as it looked at: up to two blocks'.
    """

    name = Klass.NAME

    def begin(self, row: Sequence) -> None:
        """Keeps what was seen of this block while it was ahead."""

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        return (row.variant(_wanted(row)),)

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [[strategy_of(row, Klass).threshold, _share(row)] for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        confidence, masked = candidates.confidence, candidates.is_masked
        ready = masked & self._at_rest(group, candidates) & (confidence > group.of_positions(0))
        ranks = group.ranks(confidence.masked_fill(~masked, -torch.inf))
        share = masked & (ranks < group.of_positions(1))
        any_ready = group.counts(ready)[group.segments] > 0
        return torch.where(any_ready, ready, share) * int(Action.UNMASK)

    def _at_rest(self, group: Group, candidates: Candidates) -> Tensor:
        """[n] bool. Updates what the rows remember.

        Row by row: each has its own distributions, and its sums do not depend on company.
        """
        found, begin = [], 0
        for row in group.rows:
            wanted = _wanted(row)
            mine = slice(begin, begin + len(wanted))
            normaliser = candidates.normaliser[mine].unsqueeze(1)
            now = (candidates.logits[mine] - normaliser).clamp_(min=_LOWEST)
            calm = _calm(row, now, len(row.masked_in_block()))
            row.memory = _Past(wanted, now, calm)
            found.append(calm >= strategy_of(row, Klass).history)
            begin = mine.stop
        return torch.cat(found)


def _calm(row: Sequence, now: Tensor, num_masked: int) -> Tensor:
    """[n] as in _Past. now: [n, vocab_size], log-probabilities of this call; masks come first."""
    masked, past = row.masked_in_block(), row.memory
    same, calm = None, torch.zeros(num_masked, dtype=torch.int64, device=now.device)
    if isinstance(past, _Past) and np.isin(masked, past.positions).all():
        same = torch.from_numpy(np.searchsorted(past.positions, masked)).to(now.device)
        calm = past.calm[same]
    size, divergences = tile_rows(now), []
    for begin in range(0, num_masked, size):
        mine = now[begin : min(begin + size, num_masked)]
        before = _LOWEST if same is None else past.log_probabilities[same[begin : begin + size]]
        divergences.append((mine.exp() * (mine - before)).sum(dim=-1))
    still = torch.cat(divergences) < strategy_of(row, Klass).kl_threshold
    return F.pad(torch.where(still, calm + 1, 0), (0, len(now) - num_masked))


def _wanted(row: Sequence) -> Ints:
    """The block's masks; and the next block's, if this call may be the active one's last."""
    masked = row.masked_in_block()
    most = max(_share(row), row.haste.floor)
    may_end = row.step_in_block + 1 >= strategy_of(row, Klass).history or most >= len(masked)
    following = row.block + 1
    if (
        not may_end
        or following == len(row.blocks)
        or row.info.attention is not AttentionPattern.FULL  # later blocks are not computed
    ):
        return masked
    return np.concatenate([masked, row.generated[row.blocks[following]]])


def _share(row: Sequence) -> int:
    """How many are taken when none is ready."""
    last = row.steps_in_block - 1 - row.step_in_block
    return max(1, row.scheduled_commits(ahead=min(0, last)))
