"""ReMDM's rule: an ancestral sampler in which what is filled may be masked again.

Source: arXiv:2503.00307; kuleshov-group/remdm diffusion.py f830d65 (_sample,
_ddpm_caching_update: remdm-cap, remdm-rescale, remdm-conf, remdm-loop), with its log-linear
noise schedule, of which a share alpha = 1 - t of the tokens is visible at time t.

Time runs from 1 down to 1e-5 in as many equal steps as the block has. A step from t to t - dt
draws one number per position: a mask is filled with one probability, a token is masked again
with another, sigma. The reference draws both from one distribution over the vocabulary and the
mask; here the coin and the token are drawn apart, which is the same distribution.

After the last step the reference calls the model once more and fills the masks that are left
with the most likely tokens, at any temperature. So does this rule; the call is left out when
nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.columns import Floats
from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group, Rule, Variant, strategy_of
from vdiff_grpc.engine.exact import stable
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Remdm, RemdmMode

_END_OF_TIME = 1e-5


@dataclass(frozen=True, slots=True)
class Chances:
    """Of one step: that a mask is filled, and that a token is masked again (sigma).

    In the mode CONF sigma is shared out among the block's tokens: their sigmas sum up to this.
    """

    fill: float
    sigma: float


class RemdmRule(Rule):
    """Steps and time are those of a block: with one block it is the published sampler.

    Parameters of a row: the chances to fill and to mask again; whether sigma is shared out;
    whether this is the call after the last step.

    What the modes call eta: CAP an upper limit of sigma (published: 0.008), RESCALE a factor on
    the largest possible sigma (0.015), LOOP sigma itself while looping (0.02); CONF has none.
    CONF: the reference's confidence is that within top_p and without the mask id's share, kept in
    bfloat16; here it is the probability that every rule goes by, in float32.
    """

    name = Remdm.NAME

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """Logits of the whole block: its tokens may be masked again."""
        return (row.variant(row.block_positions()),)

    def draws_order(self, row: Sequence) -> bool:
        return True

    def parameters(self, rows: Rows[Sequence]) -> list[list[float]]:
        return [_parameters(row) for row in rows]

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        masked = candidates.is_masked
        fill, sigma, is_shared, is_last = (group.of_positions(column) for column in range(4))
        if any(strategy_of(row, Remdm).mode is RemdmMode.CONF for row in group.rows):
            shares = torch.from_numpy(np.concatenate([_shares(row) for row in group.rows]))
            sigma = torch.where(is_shared > 0, sigma * shares.to(sigma.device), sigma)
        if any(_is_last(row) for row in group.rows):
            _take_most_likely_(candidates, is_last > 0)
        changes = candidates.order < torch.where(masked, fill, sigma)
        return torch.where(changes, torch.where(masked, Action.UNMASK, Action.REMASK), Action.KEEP)

    def is_block_done(self, row: Sequence) -> bool:
        """When its steps are over and nothing is masked; before, tokens may be masked again."""
        return row.step_in_block >= row.steps_in_block and not len(row.masked_in_block())


def chances(strategy: Remdm, step: int, steps: int) -> Chances:
    """Of step `step`, from 0, of `steps`: at its beginning a share 1 - t should be visible.

    That share stays as it should be when a mask is filled with (dt + sigma * (1 - t)) / t, for
    any sigma up to (t - dt) / (1 - t), where all masks would be filled.
    """
    dt = (1 - _END_OF_TIME) / steps
    t = 1 - step * dt
    if strategy.mode is RemdmMode.LOOP:
        return _loop_chances(strategy, t, dt)
    most = (t - dt) / (1 - t) if step else 1.0  # at first no token is there to be masked
    match strategy.mode:
        case RemdmMode.CAP:
            sigma = min(strategy.eta, most)
        case RemdmMode.RESCALE:
            sigma = strategy.eta * min(1.0, most)
        case _:  # CONF; its masks are filled as if nothing were masked again
            return Chances(fill=dt / t, sigma=min(1.0, most))
    return Chances(fill=(dt + sigma * (1 - t)) / t, sigma=sigma)


def _loop_chances(strategy: Remdm, t: float, dt: float) -> Chances:
    """Three phases: t above t_on; then the loop; then t up to t_off.

    First: no masking again, and time runs faster, so that alpha_on is visible when t_on is
    reached. A step that begins before t_on may go past it, and then fills everything. The loop:
    alpha_on stays visible while sigma = eta tokens are masked again. Last: the rest is filled
    evenly until the end of time. Without a last phase, or when no step begins in it, the call
    after the last step fills what is left.
    """
    if t > strategy.t_on:
        speed = strategy.alpha_on / (1 - strategy.t_on)
        masked = 1 - (1 - t) * speed  # before this step; nothing, or less by rounding
        return Chances(fill=min(1.0, dt * speed / masked) if masked > 0 else 1.0, sigma=0.0)
    if t <= strategy.t_off:
        return Chances(fill=dt / t, sigma=0.0)
    hidden = 1 - strategy.alpha_on
    fill = strategy.eta * strategy.alpha_on / hidden if hidden else 1.0
    return Chances(fill=min(1.0, fill), sigma=strategy.eta)


def _parameters(row: Sequence) -> list[float]:
    if _is_last(row):
        # what is drawn for a constraint stays: the most likely token may not be allowed
        return [1.0, 0.0, 0.0, not row.request.constraints]
    strategy = strategy_of(row, Remdm)
    given = chances(strategy, row.step_in_block, row.steps_in_block)
    return [given.fill, given.sigma, strategy.mode is RemdmMode.CONF, 0.0]


def _shares(row: Sequence) -> Floats:
    """[positions of the block] of sigma in the mode CONF: softmax of -confidence, over tokens.

    The confidence is that with which a token was filled. Computed on the host, where it is kept.
    """
    positions = row.block_positions()
    shares = np.zeros(len(positions), dtype=np.float32)
    if strategy_of(row, Remdm).mode is RemdmMode.CONF:
        filled = np.isin(positions, row.committed_in_block())
        weights = np.exp(-row.confidences[positions[filled]].astype(np.float64))
        shares[filled] = weights / weights.sum()
    return shares


def _take_most_likely_(candidates: Candidates, of: Tensor) -> None:
    """In place: the most likely token instead of the one drawn, where `of` [n] is true."""
    values, token_ids = candidates.logits.max(dim=-1)
    confidence = stable(torch.exp, values - candidates.normaliser)
    candidates.token_ids.copy_(torch.where(of, token_ids, candidates.token_ids))
    candidates.confidence.copy_(torch.where(of, confidence, candidates.confidence))


def _is_last(row: Sequence) -> bool:
    """Whether the block's steps are over and this call fills what is left."""
    return row.step_in_block >= row.steps_in_block
