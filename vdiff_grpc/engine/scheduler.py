"""Decides which sequences share the next step. Knows nothing of threads, tensors or RPCs."""

from __future__ import annotations

from vdiff_grpc.engine.likelihood import is_scoring
from vdiff_grpc.engine.reservations import Reservations
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.turns import Turns
from vdiff_grpc.engine.waiting import Waiting
from vdiff_grpc.errors import QueueFullError


class Scheduler:
    """Gives places to waiting rows, and turns to running ones, within limits of rows and tokens.

    A row may join and leave between any two steps, whatever the others are doing. Without a
    target_step_tokens (0) every running row is in every step that max_step_tokens has room for.
    A row that keeps keys and values is admitted with the memory for all of them. Before its first
    step its prompt is read, page by page: of all prompts together at most max_prompt_step_tokens in a
    step, so that the others' steps stay short.
    """

    def __init__(
        self,
        max_running_rows: int,
        max_waiting_rows: int,
        max_step_tokens: int,
        max_prompt_step_tokens: int,
        reservations: Reservations,
        target_step_tokens: int = 0,
    ) -> None:
        self.max_running_rows = max_running_rows
        self.max_waiting_rows = max_waiting_rows
        self.max_step_tokens = max_step_tokens
        self.max_prompt_step_tokens = min(max_prompt_step_tokens, max_step_tokens)
        self.reservations = reservations
        self.waiting = Waiting()
        self.running: list[Sequence] = []
        # Rows that wait for a running one to read what they begin with, or to choose the lengths
        # of their holes; others pass.
        self._following: list[Sequence] = []
        self._target = min(target_step_tokens or max_step_tokens, max_step_tokens)
        self._turns = Turns(self._target, max_step_tokens)
        self._step = 0

    @property
    def queued(self) -> list[Sequence]:
        """The rows that have no place yet, in no order."""
        return [*self._following, *self.waiting]

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self._following)

    def places(self, rows: list[Sequence]) -> int:
        """How many of these a step has room for."""
        size = max(row.num_step_tokens for row in rows)
        return max(1, min(self.max_running_rows, self._target // size))

    def add(self, sequences: list[Sequence], now_ns: int) -> None:
        """Puts a request's rows in the queue. Raises QueueFullError when they do not fit."""
        room = self.max_running_rows + self.max_waiting_rows
        held = len(self.running) + self.num_waiting
        if held + len(sequences) > room:
            raise QueueFullError(
                f"{len(sequences)} rows do not fit: {held} of {room} places are taken"
            )
        for sequence in sequences:
            self.waiting.add(sequence, now_ns)

    def schedule(self, now_ns: int) -> list[Sequence]:
        """The rows of the next step, in the order in which they got their places."""
        self._admit(now_ns)
        self._share_prompts()
        rows = [row for row in self.running if row.num_pages_now or not row.num_pages_ahead]
        if not rows:
            return []
        costs = [self._cost(row) for row in rows]
        chosen = self._turns.choose(rows, costs)
        for i in chosen:
            self.waiting.charge(rows[i].request.caller, costs[i])
        return [rows[i] for i in chosen]

    def remove(self, gone: set[int]) -> None:
        """Takes out every row of the requests with these keys."""
        self._leave([s for s in self.running if s.key in gone])
        self._following = [s for s in self._following if s.key not in gone]
        self.waiting.remove(gone)

    def remove_finished(self) -> None:
        self._leave([s for s in self.running if s.finished and not is_scoring(s)])

    def _admit(self, now_ns: int) -> None:
        """Whoever waits first and does not fit yet is waited for: nobody passes."""
        tokens = sum(row.num_step_tokens for row in self.running)
        for row in [row for row in self._following if not self._follows(row)]:
            self._following.remove(row)
            self.waiting.put_back(row, now_ns)
        while self.waiting:
            row = self.waiting.first(now_ns)
            if self._follows(row):
                self._following.append(self.waiting.take(now_ns))
                continue
            if not self._fits(row, tokens):
                return
            self.running.append(self.waiting.take(now_ns))
            tokens += row.num_step_tokens

    def _fits(self, row: Sequence, running_tokens: int) -> bool:
        """Whether there is a place for a waiting row, and then it has its memory.

        running_tokens: what those that run want.
        """
        if self.running and (
            len(self.running) >= self.max_running_rows
            or running_tokens + row.num_step_tokens > self.max_step_tokens
        ):
            return False
        return self.reservations.take(row)

    def _follows(self, row: Sequence) -> bool:
        chooses = row.leader is not None and row.leader.search is not None
        return chooses or self.reservations.follows(row)

    def _share_prompts(self) -> None:
        """A page each in turn: a long prompt does not hold up a short one."""
        for row in self.running:
            row.num_pages_now = 0
        reading = [row for row in self.running if row.num_pages_ahead]
        # who read longest ago is first, so that all get on where not all get a page
        reading.sort(key=lambda row: row.read_in_step)
        self._step += 1
        left = self.max_prompt_step_tokens
        while reading:
            for row in reading:
                cost = row.page_tokens * row.num_streams
                if cost > left and left < self.max_prompt_step_tokens:
                    return
                row.num_pages_now += 1
                row.read_in_step = self._step
                left -= cost
            reading = [row for row in reading if row.num_pages_now < row.num_pages_ahead]

    def _cost(self, row: Sequence) -> int:
        """Tokens that the row computes in the next step, if it takes part."""
        pages = row.num_pages_now * row.page_tokens * row.num_streams
        return pages or row.num_step_tokens

    def _leave(self, rows: list[Sequence]) -> None:
        for row in rows:
            self.reservations.give_back(row)
        if rows:
            self.running = [s for s in self.running if s not in rows]
