"""Decides which sequences share the next step. Knows nothing of threads, tensors or RPCs."""

from __future__ import annotations

from collections import deque

from vdiff_grpc.engine.reservations import Reservations
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.errors import QueueFullError


class Scheduler:
    """First come, first served, within limits of rows, tokens per step and memory.

    A row that runs takes part in every step until it is finished; it may join and leave between
    any two steps, whatever the others are doing. Before its first step its prompt is read, page by
    page: of all prompts together so many tokens a step that the others' steps stay short.
    """

    def __init__(
        self,
        max_running_rows: int,
        max_waiting_rows: int,
        max_step_tokens: int,
        max_prompt_tokens: int,
        reservations: Reservations,
    ) -> None:
        """max_prompt_tokens: of prompts in one step."""
        self.max_running_rows = max_running_rows
        self.max_waiting_rows = max_waiting_rows
        self.max_step_tokens = max_step_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.reservations = reservations
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
            if not self.reservations.take(self.waiting[0]):
                break
            self.running.append(self.waiting.popleft())
        return self._with_pages()

    def remove(self, gone: set[int]) -> None:
        """Takes out every row of the requests with these keys."""
        self._leave([s for s in self.running if s.key in gone])
        self.waiting = deque(s for s in self.waiting if s.key not in gone)

    def remove_finished(self) -> None:
        self._leave([s for s in self.running if s.finished])

    def _leave(self, rows: list[Sequence]) -> None:
        for row in rows:
            self.reservations.give_back(row)
        if rows:
            self.running = [s for s in self.running if s not in rows]

    def _with_pages(self) -> list[Sequence]:
        """The running rows that do something in the next step.

        Rows that still read take a page each in turn: a long prompt does not hold up a short one.
        """
        reading = [row for row in self.running if row.num_pages_ahead]
        for row in self.running:
            row.num_pages_now = 0
        left = self.max_prompt_tokens
        while reading and left > 0:
            for row in reading:
                if left <= 0:
                    break
                row.num_pages_now += 1
                left -= row.page_tokens * row.num_streams
            reading = [row for row in reading if row.num_pages_now < row.num_pages_ahead]
        return [row for row in self.running if row.num_pages_now or not row.num_pages_ahead]
