"""Noise that makes a run draw what a reference drew."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vdiff_grpc.engine.rng import CounterNoise, NoiseRows

_NEVER = 1e30  # an exponential so large that its token loses
_HIGHEST = 1 - 2.0**-24


class FedDraws(CounterNoise):
    """Recorded draws, addressed by step and canvas position.

    tokens: per step, [position, token] of each draw. order: per step, the uniform number of
    each position that has one; the others have 0.
    """

    def __init__(
        self,
        tokens: list[list[tuple[int, int]]] | None = None,
        order: list[dict[int, float]] | None = None,
    ) -> None:
        self._tokens = [dict(step) for step in tokens or []]
        self._order = order or []

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        exponentials = torch.ones(len(rows.steps), vocab_size)
        for line, (step, position) in enumerate(zip(rows.steps, rows.positions, strict=True)):
            token = self._tokens[step].get(int(position))
            if token is not None:  # without a record nothing was committed there
                exponentials[line] = _NEVER
                exponentials[line, token] = 1 / _NEVER
        return exponentials.to(device)

    def order_uniforms(self, rows: NoiseRows) -> np.ndarray:
        return np.array(
            [
                self._order[step].get(int(position), 0.0) if step < len(self._order) else 0.0
                for step, position in zip(rows.steps, rows.positions, strict=True)
            ],
            dtype=np.float32,
        )


def recorded_order(case: dict[str, Any]) -> list[dict[int, float]] | None:
    """What `rand` and `weights` of Dream's cases say, as one uniform number per position.

    rand: given, for the masked positions in ascending order. weights: the positions that were
    drawn get the highest number.
    """
    if "weights" in case:
        return [{p: _HIGHEST for p, *_ in step} for step in case["steps"]]
    if "rand" not in case:
        return None
    masked = list(range(len(case["prompt"]), len(case["final"])))
    order = []
    for numbers, step in zip(case["rand"], case["steps"], strict=True):
        order.append(dict(zip(masked, numbers, strict=True)))
        taken = {p for p, *_ in step}
        masked = [p for p in masked if p not in taken]
    return order
