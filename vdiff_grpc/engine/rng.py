"""Counter-based random numbers: a pure function of a key, with no state to share.

Noise is addressed by (seed, purpose, step, canvas position, vocabulary id). A row's numbers
therefore do not depend on its neighbours, on the shape of the batch or on when it joined.

A key per position is mixed on the host with splitmix64 (Steele, Lea, Flood 2014); per
vocabulary id, on the device, two rounds of the 32-bit finaliser "lowbias32" (C. Wellons,
hash-prospector) follow: integer multiplications and shifts only, several times cheaper than
Philox in plain torch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_U64 = np.uint64
_GAMMA = 0x9E3779B97F4A7C15


class Purpose(enum.IntEnum):
    """What a number is drawn for; part of its key."""

    TOKEN = 1
    ORDER = 2
    CANVAS = 3
    LIKELIHOOD = 4


@dataclass(frozen=True, slots=True)
class NoiseRows:
    """Which draws are wanted: the address of each position's noise, as columns [num_positions].

    steps: the rule's own logical step, never the count of forward passes.
    positions: canvas positions.
    """

    seeds: npt.NDArray[np.uint64]
    steps: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def part(self, lines: slice) -> NoiseRows:
        """Some of the addresses."""
        return NoiseRows(self.seeds[lines], self.steps[lines], self.positions[lines])

    def keys(self, purpose: Purpose) -> npt.NDArray[np.uint64]:
        """One 64-bit key per position."""
        with np.errstate(over="ignore"):
            keys = _mix(self.seeds + _U64(_GAMMA))
            keys = _mix(keys ^ (self.steps.astype(_U64) << _U64(8)) ^ _U64(int(purpose)))
            return _mix(keys ^ self.positions.astype(_U64))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
        return x ^ (x >> _U64(31))


class Noise(Protocol):
    """Where random numbers come from. A test may feed a reference's own."""

    def token_exponentials(self, rows: NoiseRows, vocab_size: int, device: torch.device) -> Tensor:
        """[num_positions, vocab_size] float32 draws of Exp(1), that is -ln(u)."""
        ...

    def order_uniforms(self, rows: NoiseRows) -> npt.NDArray[np.float32]:
        """[num_positions] uniforms in [0, 1), on the host."""
        ...

    def canvas_tokens(self, rows: NoiseRows, vocab_size: int) -> npt.NDArray[np.int64]:
        """[num_positions] uniform token ids, on the host: the canvas of a model without a mask."""
        ...


class CounterNoise:
    """The noise that is served."""

    def token_exponentials(self, rows: NoiseRows, vocab_size: int, device: torch.device) -> Tensor:
        halves = torch.from_numpy(rows.keys(Purpose.TOKEN).view(np.int32).reshape(-1, 2))
        low, high = halves.to(device).unbind(1)
        # whole vectors: the same formula for every number, whatever the number of rows
        x = torch.arange(-(-vocab_size // 32) * 32, dtype=torch.int32, device=device)
        x = x.unsqueeze(0) ^ low.unsqueeze(1)
        _lowbias32_(x)
        x ^= high.unsqueeze(1)
        _lowbias32_(x)
        # x read as unsigned h: u = (h + 1/2) / 2^32 in (0, 1). -ln(1 - u) keeps its precision
        # where it is small, which is the end that decides an argmax.
        below_0 = (x >> 31).to(torch.float32)  # -1 or 0: several times faster than x < 0
        u = x.to(torch.float32).sub_(below_0, alpha=2.0**32).add_(0.5).mul_(-(2.0**-32))
        u.clamp_(min=-(1 - 2.0**-24))  # the highest h round up to 1
        return u.log1p_().neg_()[:, :vocab_size]

    def order_uniforms(self, rows: NoiseRows) -> npt.NDArray[np.float32]:
        keys = rows.keys(Purpose.ORDER)
        return ((keys >> _U64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)

    def canvas_tokens(self, rows: NoiseRows, vocab_size: int) -> npt.NDArray[np.int64]:
        high = rows.keys(Purpose.CANVAS) >> _U64(32)
        return ((high * _U64(vocab_size)) >> _U64(32)).astype(np.int64)


def _lowbias32_(x: Tensor) -> None:
    """In place on int32. Multiplication wraps; the shifts are made logical by a mask."""
    shifted = torch.empty_like(x)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        torch.bitwise_right_shift(x, shift, out=shifted)
        x ^= shifted.bitwise_and_((1 << (32 - shift)) - 1)
        if factor is not None:
            x *= factor
