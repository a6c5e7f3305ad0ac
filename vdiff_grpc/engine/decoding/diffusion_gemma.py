"""DiffusionGemma's rule: a canvas of random tokens is denoised step by step.

At step k of N the logits are divided by T = t_min + (t_max - t_min) * (N - k) / N. A token is
drawn for every position; in order of rising entropy they are accepted while the sum of the
entropies before them stays in the bound. Every other position gets a new random token, whether it
was accepted before or not. The canvas is done when its most likely tokens have not changed for
some steps and the mean entropy is low, or after N steps; then these most likely tokens, not the
drawn ones, are its text.

On our canvas a position is masked while it holds noise; only the network sees the random token.

Source: transformers 5.23 models/diffusion_gemma/generation_diffusion_gemma.py
(EntropyBoundSampler, StableAndConfidentStoppingCriteria); the bound: arXiv:2505.24857.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.attention import FULL
from vdiff_grpc.engine.decoding.rule import (
    COLDEST,
    Action,
    Candidates,
    Columns,
    Group,
    Rule,
    Variant,
    strategy_of,
)
from vdiff_grpc.engine.decoding.stages import entropy
from vdiff_grpc.engine.models.diffusion_gemma_network import CanvasState
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import UniformNoise

_DONE = 8  # added to the actions of a canvas' last step: the host learns it with them


@dataclass(slots=True)
class Denoising:
    """Of one row, in one canvas.

    best: [canvas_length] the last step's most likely tokens. num_same: 0-d, for how many steps
    they have been the same.
    """

    canvas: CanvasState
    best: Tensor | None = None
    num_same: Tensor | None = None
    done: bool = False


class UniformNoiseRule(Rule):
    """Each row by itself: its canvas has a state, and logits over a large vocabulary are big."""

    name = UniformNoise.NAME
    noisy_canvas = True

    def begin(self, row: Sequence) -> None:
        canvas = CanvasState() if row.memory is None else row.memory.canvas
        canvas.conditioning = None
        row.memory = Denoising(canvas)

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """The whole canvas, accepted or not; first the encoder reads what has been settled."""
        canvas, positions = row.memory.canvas, row.block_positions()
        canvas.unread = row.ids[canvas.num_read : positions[0]]
        variant = Variant(
            token_ids=row.ids[positions],
            position_ids=row.position_ids[positions],
            rule=FULL,
            heads=np.arange(len(positions)),
            positions=positions,
            noise_step=row.step,
            state=canvas,
            forwards=2 if len(canvas.unread) else 1,
        )
        return (variant,)

    def temperature(self, row: Sequence) -> float:
        """The schedule's, times the request's; never 0, since logits are divided by it."""
        strategy = strategy_of(row, UniformNoise)
        left = 1 - row.step_in_block / strategy.max_denoising_steps
        scheduled = strategy.t_min + (strategy.t_max - strategy.t_min) * left
        return max(scheduled * row.params.temperature, COLDEST)

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        actions = torch.zeros_like(candidates.token_ids)
        begin = 0
        for row in group.rows:
            end = begin + len(row.block_positions())
            actions[begin:end] = self._step(row, candidates.part(begin, end))
            begin = end
        return actions

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        row.memory.done = bool(proposals.actions[0] & _DONE)
        proposals = dataclasses.replace(proposals, actions=proposals.actions & ~_DONE)
        return super().settle(row, proposals)

    def is_block_done(self, row: Sequence) -> bool:
        done: bool = row.memory.done
        return done

    def _step(self, row: Sequence, canvas: Candidates) -> Tensor:
        """[canvas_length] actions. In the last step the tokens become the most likely ones."""
        strategy, memory = strategy_of(row, UniformNoise), row.memory
        tempered = canvas.logits / self.temperature(row)
        memory.canvas.condition(tempered)
        entropies = entropy(tempered)
        best = tempered.argmax(dim=-1)

        done = self._is_done(row, best, entropies)
        likelihood = canvas.logits.gather(1, best.unsqueeze(1)).squeeze(1)
        best_confidence = (likelihood - canvas.normaliser).exp_()
        canvas.token_ids.copy_(torch.where(done, best, canvas.token_ids))
        canvas.confidence.copy_(torch.where(done, best_confidence, canvas.confidence))

        filled = done | _within(entropies, strategy.entropy_bound)
        differs = canvas.token_ids != canvas.current
        of_masked = filled * int(Action.UNMASK)
        of_filled = torch.where(filled, differs * int(Action.REVISE), int(Action.REMASK))
        return torch.where(canvas.is_masked, of_masked, of_filled) + done * _DONE

    def _is_done(self, row: Sequence, best: Tensor, entropies: Tensor) -> Tensor:
        """0-d bool, on the device."""
        strategy, memory = strategy_of(row, UniformNoise), row.memory
        num_same = torch.zeros((), dtype=torch.int64, device=best.device)
        if memory.best is not None:
            num_same = torch.where((best == memory.best).all(), memory.num_same + 1, num_same)
        memory.best, memory.num_same = best, num_same
        stable = num_same >= strategy.stability_threshold
        confident = entropies.mean() < strategy.confidence_threshold
        is_last = row.step_in_block + 1 >= strategy.max_denoising_steps
        return (stable & confident) | is_last


def _within(entropies: Tensor, bound: float) -> Tensor:
    """[canvas_length] bool: taken in order of rising entropy while the sum before stays within."""
    rising, order = entropies.sort(stable=True)
    taken = rising.cumsum(dim=0) - rising <= bound
    return torch.zeros_like(taken).scatter_(0, order, taken)
