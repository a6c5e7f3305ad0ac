"""The rows that wait for a place, and which is next. Knows no threads, tensors or RPCs.

From the outside in:

1. Priority: the smaller first. One that has got no place for 10 s counts as smaller by one, for
   20 s by two: none waits for ever.
2. Within a priority, the caller for whose rows the fewest tokens have been computed: a virtual token
   counter (Sheng et al., arXiv:2401.00588). A caller that begins to wait is lifted to those who wait
   already, so that nobody saves up while away.
3. Among a caller's own, the row that is due first: at its deadline or the end of its latency budget,
   but 10 s after it came at the latest. So nothing that comes later than that overtakes it, and no deadline helps against others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from vdiff_grpc.engine.sequence import Sequence

LEVEL_NS = 10_000_000_000  # waiting that is worth one priority
PATIENCE_NS = 10_000_000_000
_MAX_COUNTERS = 4096  # callers that are remembered

_Entry = tuple[int, int, Sequence]  # due_ns, number in order of arrival


@dataclass(slots=True)
class _Class:
    """The rows of one priority. since_ns: when it last got a place, or began to wait."""

    since_ns: int
    callers: dict[str, list[_Entry]] = field(default_factory=dict)  # heaps, none empty


class Waiting:
    """Rows in no list of their own, but by priority and caller."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        self._tokens: dict[str, float] = {}  # computed for each caller
        self._level = 0.0  # the counter of the last caller that got a place
        self._next_number = 0

    def __len__(self) -> int:
        return sum(len(heap) for one in self._classes.values() for heap in one.callers.values())

    def __bool__(self) -> bool:
        return bool(self._classes)

    def __iter__(self) -> Iterator[Sequence]:
        """In no order."""
        for one in self._classes.values():
            for heap in one.callers.values():
                yield from (row for _, _, row in heap)

    def add(self, row: Sequence, now_ns: int) -> None:
        request = row.request
        caller = request.caller
        one = self._classes.setdefault(request.priority, _Class(now_ns))
        if all(caller not in other.callers for other in self._classes.values()):
            others = (self._tokens[other] for other in one.callers)
            level = min(others, default=self._level)
            if len(self._tokens) >= _MAX_COUNTERS:
                self._forget()
            self._tokens[caller] = max(self._tokens.get(caller, 0.0), level)
        due = (request.arrival_ns + PATIENCE_NS, request.deadline_ns, request.due_ns)
        due_ns = min(one_ns for one_ns in due if one_ns is not None)
        heappush(one.callers.setdefault(caller, []), (due_ns, self._next_number, row))
        self._next_number += 1

    def put_back(self, row: Sequence, now_ns: int) -> None:
        """A row that was taken and got no place."""
        self.charge(row.request.caller, -row.num_step_tokens)
        self.add(row, now_ns)

    def first(self, now_ns: int) -> Sequence:
        """Whose turn it is. There must be one."""
        one = self._classes[self._next_priority(now_ns)]
        return one.callers[self._next_caller(one)][0][2]

    def take(self, now_ns: int) -> Sequence:
        """Takes out the first."""
        priority = self._next_priority(now_ns)
        one = self._classes[priority]
        caller = self._next_caller(one)
        self._level = max(self._level, self._tokens[caller])
        one.since_ns = now_ns
        row = heappop(one.callers[caller])[2]
        # At once, so that places that are given together do not all go to one caller.
        self.charge(caller, row.num_step_tokens)
        self._drop_empty(priority, caller)
        return row

    def charge(self, caller: str, tokens: int) -> None:
        """So many were computed for a row of this caller."""
        self._tokens[caller] = self._tokens.get(caller, self._level) + tokens

    def remove(self, gone: set[int]) -> None:
        """Takes out every row of the requests with these keys."""
        for priority, one in list(self._classes.items()):
            for caller, heap in list(one.callers.items()):
                if any(row.key in gone for _, _, row in heap):
                    heap[:] = [entry for entry in heap if entry[2].key not in gone]
                    heapify(heap)
                    self._drop_empty(priority, caller)

    def _next_priority(self, now_ns: int) -> int:
        if len(self._classes) == 1:
            return next(iter(self._classes))

        def place(priority: int) -> tuple[int, int]:
            since_ns = self._classes[priority].since_ns
            return priority - (now_ns - since_ns) // LEVEL_NS, since_ns

        return min(self._classes, key=place)

    def _next_caller(self, one: _Class) -> str:
        if len(one.callers) == 1:
            return next(iter(one.callers))
        return min(one.callers, key=lambda c: (self._tokens[c], one.callers[c][0][1]))

    def _drop_empty(self, priority: int, caller: str) -> None:
        one = self._classes[priority]
        if not one.callers[caller]:
            del one.callers[caller]
        if not one.callers:
            del self._classes[priority]

    def _forget(self) -> None:
        """Counters of those who wait for nothing: they come back as new ones do."""
        held = {caller for one in self._classes.values() for caller in one.callers}
        self._tokens = {caller: self._tokens[caller] for caller in held}
