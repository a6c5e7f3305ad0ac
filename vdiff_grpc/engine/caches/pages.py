"""Which pages of the memory for keys and values belong to whom. Knows no tensors and no rows.

A page holds so many consecutive tokens of one canvas. A row takes all pages that it can ever want
when it is admitted, so that it never runs out. Whole pages of a prompt can be published: a later
prompt that begins with the same tokens is given the same pages. Nobody writes to a published page.
Pages that nobody holds but that are published stay until their place is needed, the longest
unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_ROOT = 0


@dataclass(slots=True, eq=False)
class Lease:
    """Pages of one canvas, in the order of its tokens.

    length: leading tokens whose keys and values are there. age: passes since they were computed.
    num_shared: leading tokens that were there from the beginning.
    names: of the leading pages that may be shared, what stands in them. num_published: of these,
    those that are; node: the last one's.
    """

    pages: list[int]
    page_tokens: int
    length: int = 0
    age: int = 0
    num_shared: int = 0
    names: tuple[bytes, ...] = ()
    num_published: int = 0
    node: int = _ROOT
    slots: Ints = field(init=False)

    def __post_init__(self) -> None:
        first = np.array(self.pages, dtype=np.int64)[:, None] * self.page_tokens
        self.slots = (first + np.arange(self.page_tokens)).reshape(-1)


@dataclass(slots=True)
class _Published:
    """A page that others may read. node: its own number as a parent; key: where it is found."""

    node: int
    key: tuple[int, bytes]


class Pages:
    """num_pages pages of page_tokens each."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._free = set(range(num_pages))
        self._holders = [0] * num_pages
        self._published: dict[int, _Published] = {}
        self._found: dict[tuple[int, bytes], int] = {}
        self._coming: dict[tuple[int, bytes], Lease] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._nodes = count(_ROOT + 1)

    @property
    def num_held(self) -> int:
        """Pages that belong to somebody now."""
        return self.num_pages - len(self._free) - len(self._unused)

    def pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def has_room(self, num_pages: int, names: tuple[bytes, ...] = ()) -> bool:
        """Whether so many pages can be had, those of these names that are there among them."""
        shared, _ = self._lookup(names)
        unused = len(self._unused) - sum(page in self._unused for page in shared)
        return num_pages - len(shared) <= len(self._free) + unused

    def take(self, num_tokens: int, names: tuple[bytes, ...] = ()) -> Lease | None:
        """Pages for a canvas of so many tokens; None when there are not enough.

        names: of its leading pages that may be shared.
        """
        shared, parent = self._lookup(names)
        wanted = self.pages_of(num_tokens) - len(shared)
        if not self.has_room(wanted + len(shared), names):
            return None
        for page in shared:
            self._hold(page)
        num_shared = len(shared) * self.page_tokens
        lease = Lease(
            shared + self._take_free(wanted),
            self.page_tokens,
            length=num_shared,
            num_shared=num_shared,
            names=names,
            num_published=len(shared),
            node=parent,
        )
        self._announce(lease)
        return lease

    def is_coming(self, names: tuple[bytes, ...]) -> bool:
        """Whether somebody is computing the first page that could be shared and is not there."""
        shared, parent = self._lookup(names)
        return len(shared) < len(names) and (parent, names[len(shared)]) in self._coming

    def publish(self, lease: Lease) -> None:
        """What the lease has computed of its named pages can be shared from now on."""
        while lease.num_published < min(len(lease.names), lease.length // self.page_tokens):
            page = lease.pages[lease.num_published]
            key = (lease.node, lease.names[lease.num_published])
            if self._coming.get(key) is lease:
                del self._coming[key]
            # where somebody else was as fast, this lease keeps a page of its own
            if key not in self._found:
                self._found[key] = page
                self._published[page] = _Published(next(self._nodes), key)
            lease.node = self._published[self._found[key]].node
            lease.num_published += 1
            self._announce(lease)

    def give_back(self, lease: Lease) -> None:
        """The last of a page's holders leaves it free, or published and unused."""
        self._coming = {k: owner for k, owner in self._coming.items() if owner is not lease}
        for page in reversed(lease.pages):  # what others build upon is unused for the shorter time
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._published:
                self._unused[page] = None
            else:
                self._free.add(page)
        lease.pages = []

    def _lookup(self, names: tuple[bytes, ...]) -> tuple[list[int], int]:
        """The published pages of these names, and the last one's node."""
        pages, parent = list[int](), _ROOT
        for name in names:
            page = self._found.get((parent, name))
            if page is None:
                break
            pages.append(page)
            parent = self._published[page].node
        return pages, parent

    def _announce(self, lease: Lease) -> None:
        """The next page that the lease will publish."""
        if lease.num_published < len(lease.names):
            self._coming.setdefault((lease.node, lease.names[lease.num_published]), lease)

    def _hold(self, page: int) -> None:
        self._unused.pop(page, None)
        self._holders[page] += 1

    def _take_free(self, wanted: int) -> list[int]:
        """Pages side by side where there are so many: they can be read without a copy."""
        while len(self._free) < wanted:
            page, _ = self._unused.popitem(last=False)
            gone = self._published.pop(page)
            del self._found[gone.key]
            self._free.add(page)
        free = sorted(self._free)
        starts = range(len(free) - wanted + 1) if wanted else ()
        begin = next((i for i in starts if free[i + wanted - 1] - free[i] == wanted - 1), 0)
        taken = free[begin : begin + wanted]
        self._free.difference_update(taken)
        for page in taken:
            self._hold(page)
        return taken
