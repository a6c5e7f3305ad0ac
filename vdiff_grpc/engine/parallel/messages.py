"""What crosses between the engine and the other ranks. Plain, picklable, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vdiff_grpc.engine.attention import MaskRule

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

    cu_q, rules, merge: as in AttentionLayout.
    """

    token_ids: Ints
    position_ids: Ints
    head: Ints
    cu_q: tuple[int, ...]
    rules: tuple[MaskRule, ...]
    merge: bool


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
