"""Owns the two verifiable tasks: their instances, their split, and the programs that check them."""

from __future__ import annotations

import random
from collections.abc import Sequence

DIGITS, TOP = 8, 2  # digits of a running-totals instance; the largest of them after the first
BLANK = "_"
UNIVERSE = "0123456789"
HOLES = (3, 5, 8)  # sizes of the each-digit-once task that the figures use


def totals(digits: Sequence[int]) -> list[int]:
    """Running sums modulo ten."""
    out: list[int] = []
    for x in digits:
        out.append(((out[-1] if out else 0) + x) % 10)
    return out


def held_out(digits: Sequence[int]) -> bool:
    """The rule by which instances of either task are kept for evaluation.

    Of running totals it sees the digits; of the other task the given digits in their order.
    """
    return sum(x * (i + 1) for i, x in enumerate(digits)) % 20 == 7


def draw_digits(rng: random.Random, want_held_out: bool, top: int = TOP) -> list[int]:
    """Digits of a running-totals instance on the wanted side of the rule.

    All but the first are up to `top`.
    """
    while True:
        digits = [rng.randrange(10)] + [rng.randrange(top + 1) for _ in range(DIGITS - 1)]
        if held_out(digits) == want_held_out:
            return digits


def task_text(digits: Sequence[int]) -> tuple[str, str]:
    """Request and right reply of a running-totals instance."""
    ask = "Running totals of " + "".join(map(str, digits)) + "."
    return ask, "".join(map(str, totals(digits)))


def draw_row(rng: random.Random, want_held_out: bool, holes: int) -> str:
    """Ten places of which all but `holes` hold different digits, on the wanted side of the rule.

    With eight holes or more every row is on the side of training if its given digits say so;
    a row without given digits can never be held out.
    """
    while True:
        places = rng.sample(UNIVERSE, len(UNIVERSE))
        for i in rng.sample(range(len(places)), holes):
            places[i] = BLANK
        if held_out([int(c) for c in places if c != BLANK]) == want_held_out:
            return "".join(places)


def row_ask(row: str) -> str:
    """The request for a row: fill it so that every digit occurs once."""
    return f"Fill in {row}."


def row_reply(row: str, rng: random.Random) -> str:
    """One right reply: the missing digits rising, falling, or (three in ten) in any order.

    Every order is right; that two of them are frequent makes the places depend on each other in
    a way that one committed digit settles: before it no place is sure, after it most are.
    """
    missing = [c for c in UNIVERSE if c not in row]
    form = rng.random()
    if form < 0.3:
        rng.shuffle(missing)
    elif form < 0.65:
        missing.reverse()
    rest = iter(missing)
    return "".join(next(rest) if c == BLANK else c for c in row)


def row_is_right(row: str, reply: str) -> bool:
    """Whether a reply keeps the given digits at their places and has every digit once."""
    if len(reply) != len(row) or sorted(reply) != sorted(UNIVERSE):
        return False
    return all(given in (BLANK, said) for given, said in zip(row, reply, strict=True))
