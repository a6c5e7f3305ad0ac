"""The memory itself: keys and values of every layer, reserved at start. Knows slots, not rows.

A slot holds one token. Its keys and values are written once they are wanted later; what a segment
sees before its own tokens is put in front of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """What one segment reads and leaves behind.

    reads: slots of the tokens that it sees before its own. writes: slots for its first tokens.
    """

    reads: Ints
    writes: Ints


@dataclass(slots=True)
class Traffic:
    """What all segments of a packed step read and write, in the form that a layer wants it.

    begins: [num_segments + 1] offsets of the segments' own tokens in the packed step.
    """

    begins: tuple[int, ...]
    windows: tuple[Window | None, ...]
    _writes: tuple[Tensor, Tensor] | None = field(default=None, init=False)
    _pieces: list[tuple[bool, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._pieces = []
        for begin, end, window in zip(self.begins, self.begins[1:], self.windows, strict=False):
            if window is not None:
                self._pieces += [(True, first, stop) for first, stop in _runs(window.reads)]
            self._add_own(begin, end)

    def writes(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Tokens and slots; None when nothing is written."""
        if self._writes is None:
            tokens, slots = [], []
            for begin, window in zip(self.begins, self.windows, strict=False):
                if window is not None and len(window.writes):
                    tokens.append(np.arange(begin, begin + len(window.writes)))
                    slots.append(window.writes)
            if not tokens:
                return None
            self._writes = (
                torch.from_numpy(np.concatenate(tokens)).to(device),
                torch.from_numpy(np.concatenate(slots)).to(device),
            )
        return self._writes

    def joined(self, memory: Tensor, own: Tensor) -> Tensor:
        """[num_keys, kv_heads, head_dim]: each segment's window, then its own tokens."""
        if len(self._pieces) == 1:
            return own
        return torch.cat([memory[a:b] if is_kept else own[a:b] for is_kept, a, b in self._pieces])

    def _add_own(self, begin: int, end: int) -> None:
        """Neighbours without a window are one piece."""
        if self._pieces and not self._pieces[-1][0] and self._pieces[-1][2] == begin:
            begin = self._pieces.pop()[1]
        self._pieces.append((False, begin, end))


class KeyValues:
    """layers: of each attention layer, its key's and its value's [heads, width]."""

    def __init__(
        self,
        layers: dict[int, tuple[torch.Size, torch.Size]],
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._layers = {
            number: tuple(torch.empty(num_slots, *s, dtype=dtype, device=device) for s in sizes)
            for number, sizes in layers.items()
        }

    def extend(
        self, layer: int, key: Tensor, value: Tensor, traffic: Traffic
    ) -> tuple[Tensor, Tensor]:
        """Keeps what is to be kept; returns the keys and values that the segments see.

        key, value: [num_tokens, kv_heads, head_dim] of the packed step.
        """
        kept = self._layers[layer]
        if writes := traffic.writes(key.device):
            tokens, slots = writes
            for memory, new in zip(kept, (key, value), strict=True):
                memory.index_copy_(0, slots, new.index_select(0, tokens))
        return traffic.joined(kept[0], key), traffic.joined(kept[1], value)


class Measure:
    """In place of KeyValues: learns what the layers of a network want to keep."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Size, torch.Size]] = {}

    def extend(
        self, layer: int, key: Tensor, value: Tensor, traffic: Traffic
    ) -> tuple[Tensor, Tensor]:
        self.layers[layer] = (key.shape[1:], value.shape[1:])
        return key, value


def _runs(slots: Ints) -> list[tuple[int, int]]:
    """Slots side by side, as [first, stop)."""
    if not len(slots):
        return []
    cuts = np.flatnonzero(np.diff(slots) != 1) + 1
    bounds = [0, *cuts.tolist(), len(slots)]
    return [(int(slots[a]), int(slots[b - 1]) + 1) for a, b in pairwise(bounds)]
