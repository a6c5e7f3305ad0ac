"""What a cache policy decides: which part of a canvas is computed, and what is seen beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.caches.key_values import Window
from vdiff_grpc.engine.caches.pages import Lease

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pass sees of a lease, and adds to it.

    seen: canvas positions [begin, end) whose keys and values it reads. begin: position of the
    first token that it computes. keep: leading computed tokens whose keys and values are kept.
    """

    lease: Lease
    seen: tuple[tuple[int, int], ...]
    begin: int
    keep: int

    def window(self) -> Window:
        slots = self.lease.slots
        reads = [slots[begin:end] for begin, end in self.seen]
        return Window(np.concatenate(reads), slots[self.begin : self.begin + self.keep])

    def of(self, lease: Lease) -> Kept:
        """The same of another canvas."""
        return Kept(lease, self.seen, self.begin, self.keep)

    def done(self) -> None:
        """The pass has been computed."""
        self.lease.age = 1 if self.keep else self.lease.age + 1
        self.lease.length = max(self.lease.length, self.begin + self.keep)


@dataclass(frozen=True, slots=True)
class Part:
    """Canvas positions [begin, end) to compute, beside what is kept."""

    begin: int
    end: int
    kept: Kept | None = None


class Canvas(Protocol):
    """What a policy knows of a row.

    num_tokens: of the canvas. seen_end: where what is computed of it ends, in this block. shift: logits of position p - shift predict position p.
    page_tokens: of a page. attention_block: tokens of a block that is settled as a whole. cache_refresh_steps: passes
    after which what is kept is computed anew; 0: never inside a block.
    """

    shift: int
    page_tokens: int
    cache_refresh_steps: int

    @property
    def num_tokens(self) -> int: ...

    @property
    def seen_end(self) -> int: ...

    @property
    def attention_block(self) -> int: ...

    def block_positions(self) -> Ints: ...


class CachePolicy:
    """Stateless: what is known of a row's canvas lies in its lease.

    keeps: a row wants pages for its canvas. shares: its prompt can be shared with other rows'.
    """

    keeps = True
    shares = False

    def part(self, canvas: Canvas, lease: Lease | None, positions: Ints) -> Part:
        """positions: whose logits are wanted, ascending."""
        raise NotImplementedError

    def most(self, canvas: Canvas, lease: Lease | None) -> int:
        """Most tokens of a part that the next step computes; lease: None before there is one."""
        return canvas.seen_end

    def enter_block(self, lease: Lease) -> None:
        """The row goes on to its next block."""


class KeepNothing(CachePolicy):
    """Every pass computes the whole canvas."""

    keeps = False

    def part(self, canvas: Canvas, lease: Lease | None, positions: Ints) -> Part:
        return Part(0, canvas.seen_end)
