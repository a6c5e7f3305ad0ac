"""The embedded model's tasks whose answers a program can check, as seeded instances."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training import tasks


@dataclass(frozen=True, slots=True)
class Instance:
    """One request and the program that checks its answer."""

    ask: str
    is_right: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of instance. num_tokens: of a right answer, its end token not counted."""

    name: str
    num_tokens: int
    draw: Callable[[random.Random], Instance]

    def instances(self, count: int, seed: int) -> list[Instance]:
        """The same ones for the same seed, all from the held-out side."""
        rng = random.Random(f"{self.name} {seed}")
        return [self.draw(rng) for _ in range(count)]


def _running_totals(rng: random.Random) -> Instance:
    ask, right = tasks.task_text(tasks.draw_digits(rng, want_held_out=True))
    return Instance(ask, lambda answer: answer == right)


def _each_digit_once(holes: int) -> Callable[[random.Random], Instance]:
    def draw(rng: random.Random) -> Instance:
        row = tasks.draw_row(rng, want_held_out=True, holes=holes)
        return Instance(tasks.row_ask(row), lambda answer: tasks.row_is_right(row, answer))

    return draw


TASKS = (
    Task("running totals", tasks.DIGITS, _running_totals),
    *(
        Task(f"{holes} holes", len(tasks.UNIVERSE), _each_digit_once(holes))
        for holes in tasks.HOLES
    ),
)
