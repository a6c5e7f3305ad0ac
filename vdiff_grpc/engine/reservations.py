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
        leases: dict[int, Lease] = {}
        for stream, pages in self._wanted(row).items():
            names = self._names(row) if stream == CANVAS else ()
            lease = pages.take(row.num_tokens, names)
            if lease is None:
                self._give_back(leases)
                return False
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
        self._give_back(row.leases)
        row.leases = {}

    def _give_back(self, leases: dict[int, Lease]) -> None:
        for stream, lease in leases.items():
            (self.auxiliary if stream == AUXILIARY else self.pages).give_back(lease)

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
