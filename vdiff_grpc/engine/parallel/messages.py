"""What crosses between the engine and the other ranks. Plain, picklable, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vdiff_grpc.engine.attention import MaskRule
    from vdiff_grpc.engine.caches.key_values import Window

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank is to hold, and where the others are met."""

    rank: int
    size: int
    store: str
    path: str
    device: str
    dtype: str
    threads: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass of packed rows; the arguments of LoadedModel.logits as plain data.

    lengths to backends: the arguments of AttentionLayout.of_lengths.
    """

    token_ids: Ints
    position_ids: Ints
    head: Ints
    lengths: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    windows: tuple[Window | None, ...]
    merge: bool
    backends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reserve:
    """A memory for the keys and values of so many tokens is wanted: those of the rank's own heads."""

    num_slots: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends the rank's process."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rank has its weights."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The rank cannot go on, and ends. trace: for the log."""

    reason: str
    trace: str
