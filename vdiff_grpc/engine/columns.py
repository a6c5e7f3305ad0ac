"""What passes between a row, the packed step and the decoding rules, on the host."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.attention import MaskRule
from vdiff_grpc.engine.caches.policy import Kept

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Status(enum.IntEnum):
    """Of a candidate position.

    MASKED: may be filled now. AHEAD: masked, but beyond the active block: only looked at.
    COMMITTED: filled, in the active block: may be revised or masked again.
    """

    MASKED = 0
    AHEAD = 1
    COMMITTED = 2


class Action(enum.IntEnum):
    """What a rule does to a candidate position."""

    KEEP = 0
    UNMASK = 1
    REVISE = 2
    REMASK = 3
    HURRY = 4  # an UNMASK for the sake of time; on the device only


@dataclass(frozen=True, slots=True)
class Haste:
    """What a row's step fills beyond its rule's own choice, to be in time.

    threshold: all predictions at least this confident. floor: and this many positions in all.
    """

    threshold: float
    floor: int


NO_HASTE = Haste(2.0, 0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One canvas to compute.

    token_ids, position_ids: [length]; positions are those of the canvas.
    heads: [num_wanted] indices into token_ids whose logits are read.
    positions: [num_wanted] canvas positions that those logits predict, ascending.
    noise_step: logical step that addresses the noise of its draws.
    kept: what it sees of other passes' keys and values, and adds to them.
    state: what a network that computes rows one by one keeps of this row.
    forwards: passes of the model that it costs.
    """

    token_ids: Ints
    position_ids: Ints
    rule: MaskRule
    heads: Ints
    positions: Ints
    noise_step: int
    kept: Kept | None = None
    state: Any = None
    forwards: int = 1

    def replaced(self, token_ids: Ints, kept: Kept | None) -> Variant:
        """The same of other tokens."""
        return dataclasses.replace(self, token_ids=token_ids, kept=kept)


@dataclass(frozen=True, slots=True)
class Columns:
    """One row's candidates, or its changes of one logical step; one line per position.

    variants: number of the variant in the row's plan. actions: of Action.
    top_ids, top_logprobs: [num_lines, k] the most likely tokens, when asked for.
    """

    variants: Ints
    positions: Ints
    token_ids: Ints
    confidences: Floats
    actions: Ints
    top_ids: Ints | None = None
    top_logprobs: Floats | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def with_top(self, ids: Ints, logprobs: Floats) -> Columns:
        """With the most likely tokens of every line."""
        return dataclasses.replace(self, top_ids=ids, top_logprobs=logprobs)

    def take(self, index: Bools | Ints) -> Columns:
        """Some of the lines."""
        return Columns(
            self.variants[index],
            self.positions[index],
            self.token_ids[index],
            self.confidences[index],
            self.actions[index],
            None if self.top_ids is None else self.top_ids[index],
            None if self.top_logprobs is None else self.top_logprobs[index],
        )
