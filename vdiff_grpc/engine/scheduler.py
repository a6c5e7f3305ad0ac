"""Decides which sequences share the next step. Knows nothing of threads, tensors or RPCs."""

from __future__ import annotations

from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.turns import Turns
from vdiff_grpc.engine.waiting import Waiting
from vdiff_grpc.errors import QueueFullError


class Scheduler:
    """Gives places to waiting rows, and turns to running ones, within limits of rows and tokens.

    A row may join and leave between any two steps, whatever the others are doing. Without a
    target_step_tokens (0) every running row is in every step that max_step_tokens has room for.
    """

    def __init__(
        self,
        max_running_rows: int,
        max_waiting_rows: int,
        max_step_tokens: int,
        target_step_tokens: int = 0,
    ) -> None:
        self.max_running_rows = max_running_rows
        self.max_waiting_rows = max_waiting_rows
        self.max_step_tokens = max_step_tokens
        self.waiting = Waiting()
        self.running: list[Sequence] = []
        target = min(target_step_tokens or max_step_tokens, max_step_tokens)
        self._turns = Turns(target, max_step_tokens)

    def add(self, sequences: list[Sequence], now_ns: int) -> None:
        """Puts a request's rows in the queue. Raises QueueFullError when they do not fit."""
        room = self.max_running_rows + self.max_waiting_rows
        held = len(self.running) + len(self.waiting)
        if held + len(sequences) > room:
            raise QueueFullError(
                f"{len(sequences)} rows do not fit: {held} of {room} places are taken"
            )
        for sequence in sequences:
            self.waiting.add(sequence, now_ns)

    def schedule(self, now_ns: int) -> list[Sequence]:
        """The rows of the next step, in the order in which they got their places.

        Whoever waits first and does not fit yet is waited for: nobody passes.
        """
        costs = [row.num_step_tokens for row in self.running]
        while self.waiting and self._fits(self.waiting.first(now_ns), sum(costs)):
            row = self.waiting.take(now_ns)
            self.running.append(row)
            costs.append(row.num_step_tokens)
        if not self.running:
            return []
        chosen = self._turns.choose(self.running, costs)
        for i in chosen:
            self.waiting.charge(self.running[i].request.caller, costs[i])
        return [self.running[i] for i in chosen]

    def remove(self, gone: set[int]) -> None:
        """Takes out every row of the requests with these keys."""
        self.running = [s for s in self.running if s.key not in gone]
        self.waiting.remove(gone)

    def remove_finished(self) -> None:
        self.running = [s for s in self.running if not s.finished]

    def _fits(self, row: Sequence, running_tokens: int) -> bool:
        """Whether there is a place for a waiting row. running_tokens: what those that run want."""
        if not self.running:
            return True
        wanted = running_tokens + row.num_step_tokens
        return len(self.running) < self.max_running_rows and wanted <= self.max_step_tokens
