"""Who has which pages of the memory for keys and values. Knows rows, not tensors.

A row takes what it can ever want when it is admitted, and gives it back when it leaves: a running row
never waits for memory.
"""

from __future__ import annotations

from vdiff_grpc.engine.caches.kinds import page_tokens
from vdiff_grpc.engine.caches.pages import Lease, Pages
from vdiff_grpc.engine.sequence import AUXILIARY, BLIND, CANVAS, Sequence
from vdiff_grpc.engine.strategies import AdaptiveParallel


class Reservations:
    """pages: of the model; auxiliary: of the model beside it. shares: prompts are shared."""

    def __init__(self, pages: Pages, auxiliary: Pages, *, shares: bool = True) -> None:
        self.pages = pages
        self.auxiliary = auxiliary
        self._shares = shares

    @classmethod
    def of_tokens(
        cls, num_tokens: int, page: int, num_auxiliary: int, *, shares: bool
    ) -> Reservations:
        """Of so many tokens, and of so many of the auxiliary model."""
        auxiliary = page_tokens(None)
        return cls(
            Pages(num_tokens // page, page),
            Pages(num_auxiliary // auxiliary, auxiliary),
            shares=shares,
        )

    @property
    def num_held_tokens(self) -> int:
        """Places of the model's that belong to running rows."""
        return self.pages.num_held * self.pages.page_tokens

    def follows(self, row: Sequence) -> bool:
        """Whether a running row is reading what this one begins with."""
        names = self._names(row)
        return bool(names) and self.pages.is_coming(names)

    def take(self, row: Sequence) -> bool:
        """Whether the row has its pages now: all of them, or none."""
        wanted = self._wanted(row)
        for pool in (self.pages, self.auxiliary):  # before any page gives way for nothing
            num_pages = sum(p.pages_of(row.num_tokens) for p in wanted.values() if p is pool)
            if not pool.has_room(num_pages, self._names(row) if pool is self.pages else ()):
                return False
        leases: dict[int, Lease] = {}
        for stream, pool in wanted.items():
            lease = pool.take(row.num_tokens, self._names(row) if stream == CANVAS else ())
            assert lease is not None, "there is room"
            leases[stream] = lease
        row.leases = leases
        if CANVAS in leases:
            row.num_shared = leases[CANVAS].num_shared
        return True

    def publish(self, row: Sequence) -> None:
        """What the row has computed of its prompt can be shared."""
        if CANVAS in row.leases:
            self.pages.publish(row.leases[CANVAS])

    def give_back(self, row: Sequence) -> None:
        """The row has left, wherever it was."""
        for stream, lease in row.leases.items():
            (self.auxiliary if stream == AUXILIARY else self.pages).give_back(lease)
        row.leases = {}

    def _wanted(self, row: Sequence) -> dict[int, Pages]:
        """Streams that keep something, and where."""
        wanted, asked = {}, row.request.params  # also while the row still chooses lengths
        if row.policy.keeps:
            wanted[CANVAS] = self.pages
            if asked.cfg_scale > 0:
                wanted[BLIND] = self.pages
        if isinstance(asked.strategy, AdaptiveParallel):
            wanted[AUXILIARY] = self.auxiliary
        return wanted

    def _names(self, row: Sequence) -> tuple[bytes, ...]:
        """A blind twin has another prompt: guided rows share nothing."""
        return row.prompt_pages if self._shares and not row.is_guided else ()
