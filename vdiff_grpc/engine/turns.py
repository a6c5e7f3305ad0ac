"""Which running rows take part in a step of limited size. Knows no threads, tensors or RPCs.

Rows are independent, so not every one has to be in every step, and their tokens do not depend on
which they are in. A small row beside a large one then steps often and the large one now and then:
deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), where each step's budget is divided
between callers and among each one's rows, and what a row cannot use goes to the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vdiff_grpc.engine.sequence import Sequence


@dataclass(slots=True)
class _Account:
    """credit: tokens that the row has been given and not used. due_since: the step's number."""

    credit: float = 0.0
    due_since: int = -1


class Turns:
    """target_step_tokens: of a step on average, where the rows together want more.

    No step is larger than the target and one row more, nor than max_step_tokens, unless a single
    row is. A row that has its credit is in a step after at most as many as there are rows.
    """

    def __init__(self, target_step_tokens: int, max_step_tokens: int) -> None:
        self._target = target_step_tokens
        self._max = max_step_tokens
        self._accounts: dict[Sequence, _Account] = {}
        self._step = 0
        self._left = 0.0  # of the budget, when every row had its credit

    def choose(self, rows: list[Sequence], costs: list[int]) -> list[int]:
        """Indices of the rows that take part, ascending; at least one. costs: tokens of each."""
        if sum(costs) <= self._target:
            self._accounts.clear()
            return list(range(len(rows)))
        self._step += 1
        self._accounts = {row: self._accounts.get(row) or _Account() for row in rows}
        accounts = list(self._accounts.values())
        sharing = Counter(row.request.caller for row in rows)
        weights = [1.0 / sharing[row.request.caller] for row in rows]
        self._pour(costs, weights, accounts)
        due = [i for i, account in enumerate(accounts) if account.credit >= costs[i]]
        for i in due:
            if accounts[i].due_since < 0:
                accounts[i].due_since = self._step
        oldest = min(due, key=lambda i: accounts[i].due_since)
        chosen, room = [oldest], min(self._target, self._max - costs[oldest])
        for i in sorted(due, key=lambda i: (costs[i] / weights[i], accounts[i].due_since)):
            if i != oldest and costs[i] <= room:
                chosen.append(i)
                room -= costs[i]
        for i in chosen:
            accounts[i].credit, accounts[i].due_since = 0.0, -1
        return sorted(chosen)

    def _pour(self, costs: list[int], weights: list[float], accounts: list[_Account]) -> None:
        """Divides the step's budget; more than that where it would get no row anywhere."""
        needs = [max(0.0, c - a.credit) for c, a in zip(costs, accounts, strict=True)]
        order = sorted(range(len(costs)), key=lambda i: needs[i] / weights[i])
        weight = sum(weights)
        first = order[0]
        left = max(self._target + self._left, needs[first] / weights[first] * weight)
        self._left = 0.0
        for rank, i in enumerate(order):
            level = left / weight
            if rank and needs[i] / weights[i] > level:
                for other in order[rank:]:
                    accounts[other].credit += level * weights[other]
                return
            accounts[i].credit = float(costs[i])
            left -= needs[i]
            weight -= weights[i]
        self._left = min(max(left, 0.0), float(self._target))
