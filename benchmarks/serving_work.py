"""What serving.py asks for, and how much of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.ideal import Steps, fixed_schedule

BLOCK = 32
NEW_TOKENS = 128  # with blocks of 32 what the published generate.py asks for
TOKENS_PER_STEP = 8


@dataclass(frozen=True, slots=True)
class Work:
    """One request. prompt: token ids."""

    prompt: tuple[int, ...]
    new: int
    block: int
    steps: int


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    clients: tuple[int, ...] = (1, 4, 8, 32)
    rounds: int = 1
    loads: tuple[float, ...] = (0.5, 0.7, 0.9)
    peer_loads: tuple[float, ...] = (0.7,)
    arrivals: int = 40
    peer_arrivals: int = 16


def works_of(count: int, seed: int) -> list[Work]:
    draw = random.Random(seed)
    return [
        Work(
            random_prompt(draw, draw.randint(16, 48)),
            NEW_TOKENS,
            BLOCK,
            NEW_TOKENS // TOKENS_PER_STEP,
        )
        for _ in range(count)
    ]


def random_prompt(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(100, 1_000) for _ in range(length))


def steps_of(work: Work) -> Steps:
    return fixed_schedule(len(work.prompt), work.new, work.block, work.steps)
