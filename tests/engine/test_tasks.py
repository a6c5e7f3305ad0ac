"""The verifiable tasks of the embedded model: what is drawn is held out, and the checker checks."""

from __future__ import annotations

import random

import pytest

from benchmarks.tasks import TASKS
from training.tasks import (
    BLANK,
    HOLES,
    UNIVERSE,
    draw_row,
    held_out,
    row_is_right,
    row_reply,
    task_text,
)


def test_running_totals_add_up_modulo_ten() -> None:
    assert task_text([9, 1, 2, 0, 2, 1, 1, 2]) == ("Running totals of 91202112.", "90224568")


@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("holes", HOLES)
def test_a_row_lies_on_the_side_of_the_split_that_was_asked_for(holes: int, side: bool) -> None:
    rng = random.Random(3)
    for _ in range(50):
        row = draw_row(rng, side, holes)
        given = [int(c) for c in row if c != BLANK]
        assert row.count(BLANK) == holes
        assert len(set(given)) == len(given) == len(UNIVERSE) - holes
        assert held_out(given) == side


def test_every_reply_of_the_training_mixture_is_right() -> None:
    rng = random.Random(4)
    for holes in range(2, 11):
        for _ in range(20):
            row = draw_row(rng, False, holes)
            assert row_is_right(row, row_reply(row, rng))


def test_missing_digits_come_rising_falling_and_in_other_orders() -> None:
    rng = random.Random(5)
    replies = {row_reply("12345" + BLANK * 5, rng) for _ in range(100)}
    assert {"1234506789", "1234598760"} < replies
    assert len(replies) > 10


@pytest.mark.parametrize(
    "reply",
    [
        "5362490780",  # a digit twice
        "3562490781",  # a given digit moved
        "536249078",  # one short
        "53624907811",  # one more
        "536249o781",  # no digit
        "",
    ],
)
def test_a_wrong_row_is_told(reply: str) -> None:
    row = "5__2_90__1"
    assert not row_is_right(row, reply)


def test_any_order_of_the_missing_digits_is_right() -> None:
    row = "5__2_90__1"
    assert all(row_is_right(row, reply) for reply in ("5362490781", "5842390671"))


def test_instances_of_a_benchmark_are_the_same_for_the_same_seed() -> None:
    for task in TASKS:
        first, again, other = (task.instances(5, seed) for seed in (1, 1, 2))
        assert [i.ask for i in first] == [i.ask for i in again] != [i.ask for i in other]


def test_the_checker_of_an_instance_belongs_to_its_own_request() -> None:
    totals = TASKS[0].instances(1, 0)[0]
    digits = [int(c) for c in totals.ask if c.isdigit()]
    assert totals.is_right(task_text(digits)[1])
    assert not totals.is_right("00000000")
