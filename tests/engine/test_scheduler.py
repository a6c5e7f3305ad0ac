"""Who gets the next place, and whose turn it is: without a model, in tokens that are counted."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdiff_grpc.engine.caches.pages import Lease
from vdiff_grpc.engine.caches.policy import CachePolicy, KeepNothing
from vdiff_grpc.engine.reservations import Reservations
from vdiff_grpc.engine.scheduler import Scheduler
from vdiff_grpc.engine.turns import Turns
from vdiff_grpc.engine.waiting import LEVEL_NS, PATIENCE_NS, Waiting
from vdiff_grpc.errors import QueueFullError

SECOND_NS = 10**9


@dataclass(frozen=True)
class Asked:
    caller: str = ""
    priority: int = 0
    arrival_ns: int = 0
    deadline_ns: int | None = None
    due_ns: int | None = None
    params: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(strategy=None, cfg_scale=0.0)
    )


@dataclass(eq=False)
class Row:
    """What the scheduler asks of a row."""

    key: int
    request: Asked = Asked()
    num_step_tokens: int = 10
    steps_left: int = 1
    joined: list[int] = field(default_factory=list)  # the steps it was in
    params: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(strategy=None))
    policy: CachePolicy = field(default_factory=KeepNothing)
    is_guided: bool = False
    prompt_pages: tuple[bytes, ...] = ()
    leader: None = None
    memory: None = None
    num_pages_ahead: int = 0
    num_pages_now: int = 0
    page_tokens: int = 32
    num_streams: int = 1
    leases: dict[int, Lease] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.steps_left <= 0


def scheduler_of(places: int, waiting: int, tokens: int, target: int = 0) -> Scheduler:
    """With memory for nothing: rows that keep nothing want none."""
    nothing = Reservations.of_tokens(0, 32, 0, shares=True)
    return Scheduler(places, waiting, tokens, 1024, nothing, target)


def step(scheduler: Scheduler, number: int = 0, now_ns: int = 0) -> list[Row]:
    """Schedules, and does the step's work."""
    rows = scheduler.schedule(now_ns)
    for row in rows:
        row.joined.append(number)
        row.steps_left -= 1
    scheduler.remove_finished()
    return rows


def keys_in_order(rows: list[Row]) -> list[int]:
    """In which order rows get the one place that there is."""
    scheduler = scheduler_of(1, len(rows), 10_000)
    scheduler.add(rows, 0)
    order = []
    while scheduler.waiting:
        order += [row.key for row in step(scheduler)]
    return order


def test_a_callers_rows_of_one_priority_go_as_they_came() -> None:
    assert keys_in_order([Row(i, Asked(arrival_ns=i)) for i in range(20)]) == list(range(20))


def test_the_smaller_priority_goes_first() -> None:
    rows = [Row(i, Asked(priority=p, arrival_ns=i)) for i, p in enumerate([0, 3, -2, 0, 3, -2])]
    assert keys_in_order(rows) == [2, 5, 0, 3, 1, 4]


def test_a_priority_that_has_waited_long_enough_gets_one_place() -> None:
    scheduler = scheduler_of(1, 64, 10_000)
    scheduler.add([Row(100, Asked("batch", 2)), Row(101, Asked("batch", 2))], 0)
    scheduler.add([Row(i, Asked("live")) for i in range(60)], 0)
    got = [step(scheduler, now_ns=s * SECOND_NS)[0].key for s in range(60)]
    # Those of priority 0 get a place every second and never age; two levels are 20 s.
    first, second = got.index(100), got.index(101)
    assert first * SECOND_NS == (second - first) * SECOND_NS == 2 * LEVEL_NS


def test_a_deadline_helps_among_the_callers_own_rows_only() -> None:
    soon = Asked("a", arrival_ns=5, deadline_ns=SECOND_NS)
    rows = [Row(0, Asked("a")), Row(1, Asked("b")), Row(2, soon), Row(3, Asked("b", arrival_ns=6))]
    order = keys_in_order(rows)
    assert order.index(2) < order.index(0), "it is due before its caller's first"
    assert order.index(1) < 2, "but the other caller gets every second place as ever"


def test_nothing_that_comes_later_than_ones_patience_overtakes_it() -> None:
    late = PATIENCE_NS + 1
    urgent = Asked(arrival_ns=late, deadline_ns=late + 1)
    assert keys_in_order([Row(0), Row(1, urgent)]) == [0, 1]


def test_a_caller_with_200_waiting_rows_delays_anothers_first_row_by_one_rows_time() -> None:
    scheduler = scheduler_of(4, 300, 10_000)
    scheduler.add([Row(i, Asked("heavy"), steps_left=8) for i in range(204)], 0)
    for number in range(13):
        step(scheduler, number)
    light = Row(1000, Asked("light"), steps_left=8)
    scheduler.add([light], 0)
    for number in range(13, 40):
        step(scheduler, number)
    assert light.joined[0] - 13 <= 8
    assert light.joined == list(range(light.joined[0], light.joined[0] + 8))


def test_callers_get_equal_tokens_whatever_the_size_of_their_rows() -> None:
    scheduler = scheduler_of(4, 4000, 10_000)
    small = [Row(i, Asked("small"), 10, steps_left=4) for i in range(2000)]
    large = [Row(9000 + i, Asked("large"), 90, steps_left=7) for i in range(1500)]
    scheduler.add(small + large, 0)
    tokens: Counter[str] = Counter()
    for number in range(400):
        for row in step(scheduler, number):
            tokens[row.request.caller] += row.num_step_tokens
    assert tokens["small"] == pytest.approx(tokens["large"], rel=0.1)


def test_a_caller_who_was_away_has_saved_up_nothing() -> None:
    waiting = Waiting()
    waiting.add(Row(0, Asked("always")), 0)
    waiting.take(0)
    for _ in range(50):
        waiting.charge("always", 1000)
        waiting.add(Row(1, Asked("always")), 0)
        waiting.take(0)
    for i in range(10):
        waiting.add(Row(10 + i, Asked("always")), 0)
        waiting.add(Row(20 + i, Asked("new")), 0)
    taken = [waiting.take(0).request.caller for _ in range(10)]
    assert taken.count("new") in (5, 6)


def test_the_counters_of_callers_who_have_left_are_bounded() -> None:
    waiting = Waiting()
    for i in range(10_000):
        waiting.add(Row(i, Asked(f"address {i}")), 0)
        waiting.take(0)
    assert len(waiting._tokens) <= 4096


def test_a_large_row_that_waits_first_is_not_passed() -> None:
    scheduler = scheduler_of(8, 8, 100)
    scheduler.add([Row(0, num_step_tokens=60, steps_left=3)], 0)
    step(scheduler)
    scheduler.add([Row(1, num_step_tokens=90), Row(2), Row(3)], 0)
    assert [[r.key for r in step(scheduler)] for _ in range(4)] == [[0], [0], [1, 2], [3]]


def test_removed_rows_are_in_no_later_step() -> None:
    scheduler = scheduler_of(2, 20, 10_000)
    scheduler.add([Row(i, Asked(f"c{i % 3}", i % 2), steps_left=2) for i in range(12)], 0)
    step(scheduler)
    scheduler.remove({0, 1, 2, 5, 6, 7})
    seen = {row.key for _ in range(20) for row in step(scheduler)}
    assert seen == {3, 4, 8, 9, 10, 11}
    assert not scheduler.waiting


def test_rows_beyond_all_places_are_refused() -> None:
    scheduler = scheduler_of(1, 2, 100)
    scheduler.add([Row(0), Row(1)], 0)
    with pytest.raises(QueueFullError, match="2 of 3 places are taken"):
        scheduler.add([Row(2), Row(3)], 0)
    assert len(scheduler.waiting) == 2


askeds = st.builds(
    Asked,
    caller=st.sampled_from("abc"),
    priority=st.integers(-3, 3),
    arrival_ns=st.integers(0, 5 * SECOND_NS),
    deadline_ns=st.none() | st.integers(SECOND_NS, 50 * SECOND_NS),
)
rows_of = st.builds(
    Row,
    key=st.integers(0, 9),
    request=askeds,
    num_step_tokens=st.integers(1, 100),
    steps_left=st.integers(1, 6),
)


@given(
    st.lists(rows_of, min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(0, 130),
    st.lists(st.integers(1, 3), max_size=5),
)
def test_every_row_is_served_no_step_is_empty_and_none_is_too_large(
    rows: list[Row], places: int, target: int, bursts: list[int]
) -> None:
    """Whatever comes: in bursts, of any priority, size and caller."""
    scheduler = scheduler_of(places, 100, 100, target)
    coming, wanted = deque(rows), {row: row.steps_left for row in rows}
    number = 0
    while coming or scheduler.waiting or scheduler.running:
        burst = bursts[number] if number < len(bursts) else len(coming)
        scheduler.add([coming.popleft() for _ in range(min(burst, len(coming)))], number)
        running = len(scheduler.running)
        served = step(scheduler, number, number)
        assert served or not (running or scheduler.waiting)
        assert len(served) <= places
        assert sum(row.num_step_tokens for row in served) <= 100
        number += 1
        assert number <= 6 * len(rows) + len(bursts) + 1
    assert {row: len(row.joined) for row in rows} == wanted


def turns_of(turns: Turns, rows: list[Row], num_steps: int) -> list[list[int]]:
    costs = [row.num_step_tokens for row in rows]
    return [turns.choose(rows, costs) for _ in range(num_steps)]


def test_rows_that_fit_together_are_in_every_step() -> None:
    assert turns_of(Turns(40, 1000), [Row(i) for i in range(4)], 5) == [[0, 1, 2, 3]] * 5


def test_a_small_row_is_in_every_step_and_a_large_one_in_every_fourth() -> None:
    steps = turns_of(Turns(1024, 16384), [Row(0, num_step_tokens=4096), Row(1)], 4000)
    assert all(1 in chosen for chosen in steps)
    # 10 of 1,024 go to the small one
    assert sum(0 in chosen for chosen in steps) == pytest.approx(4000 * 1014 / 4096, abs=1)


def test_large_rows_do_not_come_together() -> None:
    rows = [Row(i, num_step_tokens=4096) for i in range(7)] + [Row(7)]
    steps = turns_of(Turns(1024, 65536), rows, 700)
    assert all(len(chosen) <= 2 for chosen in steps)
    gaps = Counter(i for chosen in steps for i in chosen)
    assert min(gaps[i] for i in range(7)) == pytest.approx(max(gaps[i] for i in range(7)), abs=1)


def test_turns_are_shared_between_callers_not_rows() -> None:
    rows = [Row(i, Asked("many"), 100) for i in range(15)] + [Row(15, Asked("one"), 100)]
    steps = turns_of(Turns(400, 10_000), rows, 600)
    ones = sum(15 in chosen for chosen in steps)
    assert ones >= 590, "its share, 200 of 400 tokens, is more than it can use"
    others = Counter(i for chosen in steps for i in chosen if i < 15)
    assert min(others.values()) == pytest.approx(max(others.values()), abs=2)


sizes = st.lists(st.tuples(st.integers(1, 500), st.sampled_from("abc")), min_size=1, max_size=24)


@given(sizes, st.integers(1, 800), st.data())
def test_every_row_has_its_turn_within_a_bound_whatever_its_size_becomes(
    shapes: list[tuple[int, str]], target: int, data: st.DataObject
) -> None:
    """A row gets at least an equal part of its caller's share, and is not passed once it is due."""
    rows = [Row(i, Asked(caller), size) for i, (size, caller) in enumerate(shapes)]
    turns = Turns(target, 16384)
    worst = max(row.num_step_tokens for row in rows)
    bound = len(rows) + 3 * len(rows) * worst / target + 2
    last = [0] * len(rows)
    for number in range(1, 61):
        if number % 7 == 0:  # as prefilling, then decoding
            row = data.draw(st.sampled_from(rows))
            row.num_step_tokens = data.draw(st.integers(1, worst))
        costs = [row.num_step_tokens for row in rows]
        chosen = turns.choose(rows, costs)
        assert chosen == sorted(set(chosen))
        assert chosen
        largest = max(costs[i] for i in chosen)
        assert sum(costs[i] for i in chosen) <= target + largest
        for i in chosen:
            last[i] = number
        assert all(number - seen <= bound for seen in last)
