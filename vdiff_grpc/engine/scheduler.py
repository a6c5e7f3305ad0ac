"""Decides which sequences share the next step. Knows nothing of threads, tensors or RPCs."""

from __future__ import annotations

from collections import deque

from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.errors import QueueFullError


class Scheduler:
    """First come, first served, within limits of rows and tokens per step.

    A row that runs takes part in every step until it is finished; it may join and leave between
    any two steps, whatever the others are doing.
    """

    def __init__(self, max_running_rows: int, max_waiting_rows: int, max_step_tokens: int) -> None:
        self.max_running_rows = max_running_rows
        self.max_waiting_rows = max_waiting_rows
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequences: list[Sequence]) -> None:
        """Puts a request's rows in the queue. Raises QueueFullError when they do not fit."""
        room = self.max_running_rows + self.max_waiting_rows
        held = len(self.running) + len(self.waiting)
        if held + len(sequences) > room:
            raise QueueFullError(
                f"{len(sequences)} rows do not fit: {held} of {room} places are taken"
            )
        self.waiting.extend(sequences)

    def schedule(self) -> list[Sequence]:
        """The rows of the next step: those that run, and whoever waits first and still fits."""
        tokens = sum(sequence.num_step_tokens for sequence in self.running)
        while self.waiting and len(self.running) < self.max_running_rows:
            tokens += self.waiting[0].num_step_tokens
            if self.running and tokens > self.max_step_tokens:
                break
            self.running.append(self.waiting.popleft())
        return self.running

    def remove(self, gone: set[int]) -> None:
        """Takes out every row of the requests with these keys."""
        self.running = [s for s in self.running if s.key not in gone]
        self.waiting = deque(s for s in self.waiting if s.key not in gone)

    def remove_finished(self) -> None:
        self.running = [s for s in self.running if not s.finished]
