"""Latency budgets: what is hurried, how much, and who is not. On a clock of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows

import pytest

from tests.engine.tools import finished, run_all, tiny_engine, trajectory
from vdiff_grpc.engine import strategies as s
from vdiff_grpc.engine.columns import NO_HASTE, Haste
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, Failed, Finished
from vdiff_grpc.engine.hurry import Hurry
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.scheduler import Scheduler
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.step_times import StepTimes
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import BudgetError, EngineFaultError, InvalidRequestError

MS = 1_000_000
HURRIED = [kind() for kind in s.STRATEGIES.values() if kind.HURRIES]


class Clock:
    """A step takes 1 ms and 0.1 ms for each row; nothing else takes any time."""

    def __init__(self, engine: Engine) -> None:
        self.now_ns = 10**12
        engine.clock = lambda: self.now_ns
        engine.before_step = self.step

    def step(self, rows: Rows[Sequence]) -> None:
        self.now_ns += MS + len(rows) * MS // 10


def timed_engine(**options: object) -> tuple[Engine, Clock]:
    engine = tiny_engine(early_end=False, **options)  # type: ignore[arg-type]
    clock = Clock(engine)
    for count in (1, 4, 2, 1):  # it has seen steps
        for key in range(count):
            add(engine, clock, key)
        run_all(engine)
    return engine, clock


def add(
    engine: Engine,
    clock: Clock,
    key: int,
    budget_ms: float | None = None,
    strategy: s.Strategy | None = None,
    *,
    num_new: int = 40,
    caller: str = "",
) -> None:
    params = RequestParams(
        max_new_tokens=num_new, seed=key, block_length=20, strategy=strategy or s.FixedSchedule()
    )
    asked = Request(
        TokensPrompt((1, 2, 3)),
        params,
        granularity=Granularity.STEPS,
        latency_budget_ns=None if budget_ms is None else int(budget_ms * MS),
    )
    resolved = resolve(asked, engine.info, engine.limits, None)
    later = clock.now_ns - resolved.arrival_ns
    moved = {
        name: at_ns + later
        for name in ("arrival_ns", "due_ns", "deadline_ns")
        if (at_ns := getattr(resolved, name)) is not None
    }
    engine.add(key, dataclasses.replace(resolved, caller=caller, **moved))


def told(events: list[Event]) -> list[list[tuple[int, int, float]]]:
    return trajectory(events)


@pytest.mark.parametrize("strategy", HURRIED, ids=lambda strategy: strategy.NAME)
def test_a_budget_is_kept_by_filling_more_in_a_step(strategy: s.Strategy) -> None:
    engine, clock = timed_engine()
    if isinstance(strategy, s.EntropyBound):
        strategy = s.EntropyBound(0.0)  # one position at a time
    add(engine, clock, 1, 20, strategy)
    end = finished(run_all(engine)[1])
    output = end.outputs[0]
    assert end.total_time_ns <= 20 * MS
    assert output.hurried
    assert 8 <= output.forward_passes <= 18, "no more haste than it takes"
    assert len(output.tokens.ids) == 40
    assert engine.statistics.budgets_met == engine.statistics.requests_hurried == 1


def test_who_has_time_enough_is_not_hurried() -> None:
    engine, clock = timed_engine()
    add(engine, clock, 1)
    plain = run_all(engine)[1]
    add(engine, clock, 1, 60)
    events = run_all(engine)[1]
    assert told(events) == told(plain)
    assert not finished(events).outputs[0].hurried
    assert engine.statistics.requests_hurried == 0
    assert engine.statistics.budgets_met == 1


def test_what_could_never_be_in_time_takes_one_step_for_each_block() -> None:
    engine, clock = timed_engine()
    add(engine, clock, 1, 0.5)
    assert finished(run_all(engine)[1]).outputs[0].forward_passes == 2
    assert engine.statistics.budgets_missed == 1


def test_nobody_else_is_changed_by_a_hurried_neighbour() -> None:
    engine, clock = timed_engine()
    alone = {}
    for key, strategy in enumerate(HURRIED, start=1):
        add(engine, clock, key, None, strategy)
        alone[key] = run_all(engine)[key]
    for key, strategy in enumerate(HURRIED, start=1):
        add(engine, clock, key, None, strategy)
        add(engine, clock, 100 + key, 15, strategy)
    together = run_all(engine)
    for key, events in alone.items():
        assert told(together[key]) == told(events)
        assert not finished(together[key]).outputs[0].hurried
        assert finished(together[100 + key]).outputs[0].hurried


def test_the_same_haste_gives_the_same_tokens() -> None:
    engine, clock = timed_engine()
    asked = [Haste(0.9, 0), NO_HASTE, Haste(2.0, 3), Haste(0.02, 2), Haste(0.3, 7)]

    def hurried(keys: list[int]) -> dict[int, list[Event]]:
        def step(rows: Rows[Sequence]) -> None:
            for row in rows:
                row.haste = asked[row.step % len(asked)] if row.key == 7 else NO_HASTE

        engine.before_step = step
        for key in keys:
            add(engine, clock, key)
        return run_all(engine)

    alone = hurried([7])[7]
    assert told(hurried([5, 6, 7, 8])[7]) == told(alone)
    sizes = [len(step) for step in told(alone)]
    assert sizes[1:3] == [1, 3], "a floor is a floor"
    assert finished(alone).outputs[0].hurried


def test_the_surest_are_filled_first_in_haste() -> None:
    engine, clock = timed_engine()
    wanted = []

    def step(rows: Rows[Sequence]) -> None:
        for row in rows:
            row.haste = Haste(2.0, wanted[0])

    engine.before_step = step
    firsts = []
    for floor in (1, 4, 9):
        wanted[:] = [floor]
        add(engine, clock, 1)
        firsts.append({position for position, _, _ in told(run_all(engine)[1])[0]})
    assert [len(first) for first in firsts] == [1, 4, 9]
    assert firsts[0] < firsts[1] < firsts[2]


def test_places_that_claim_one_token_are_not_filled_in_one_hasty_step() -> None:
    engine, clock = timed_engine()

    def step(rows: Rows[Sequence]) -> None:
        for row in rows:
            row.haste = Haste(0.0, 0)

    engine.before_step = step
    add(engine, clock, 1)
    (output,) = finished(run_all(engine)[1]).outputs
    by_step: dict[int, list[int]] = {}
    for number, token in zip(output.tokens.steps, output.tokens.ids, strict=True):
        by_step.setdefault(number, []).append(token)
    assert 2 < len(by_step) < 20
    assert all(len(set(ids)) == len(ids) for ids in by_step.values())


def test_under_overload_too_who_did_not_ask_keeps_its_tokens() -> None:
    engine, clock = timed_engine(max_running_rows=4)
    alone = {}
    for key, strategy in enumerate(HURRIED, start=1):
        add(engine, clock, key, None, strategy)
        alone[key] = run_all(engine)[key]
    for key, strategy in enumerate(HURRIED, start=1):
        for more in range(3):
            add(engine, clock, 100 * (more + 1) + key, 5 + 9 * more, strategy)
        add(engine, clock, key, None, strategy)
    together = run_all(engine)
    for key, events in alone.items():
        assert told(together[key]) == told(events)
        assert not finished(together[key]).outputs[0].hurried
    assert engine.statistics.budgets_missed > 0
    assert engine.statistics.requests_hurried > len(HURRIED)


def test_more_company_means_more_haste_and_all_are_in_time() -> None:
    engine, clock = timed_engine()
    passes = []
    for count in (1, 8, 24):
        for key in range(count):
            add(engine, clock, key, 60)
        ends = [finished(events) for events in run_all(engine).values()]
        assert max(end.total_time_ns for end in ends) <= 60 * MS
        passes.append(sum(end.outputs[0].forward_passes for end in ends) / count)
    assert passes[0] == 40
    assert passes[0] > passes[1] > passes[2]


def test_waiting_counts_and_those_who_wait_are_thought_of() -> None:
    engine, clock = timed_engine(max_running_rows=4)
    for key in range(12):
        add(engine, clock, key, 45)
    ends = {key: finished(events) for key, events in run_all(engine).items()}
    assert max(end.total_time_ns for end in ends.values()) <= 45 * MS
    assert max(end.queue_time_ns for end in ends.values()) > 5 * MS


def test_among_a_callers_own_a_budget_goes_first_and_passes_no_other_caller() -> None:
    engine, clock = timed_engine(max_running_rows=1)
    add(engine, clock, 1, caller="a")
    engine.step()
    for key, caller, budget in ((2, "a", None), (3, "b", None), (4, "a", 200)):
        add(engine, clock, key, budget, caller=caller)
    order = []
    while engine.has_work:
        order += [key for key, event in engine.step() if isinstance(event, Finished)]
    assert order == [1, 3, 4, 2]


def test_refuse_turns_away_what_could_not_be_in_time() -> None:
    engine, clock = timed_engine(max_running_rows=2, overload="refuse")
    add(engine, clock, 1)
    add(engine, clock, 2)
    engine.step()
    with pytest.raises(BudgetError, match="with 2 rows held") as refused:
        add(engine, clock, 3, 20)  # both places are taken for some 40 steps
    assert refused.value.retry_after_s >= 0.1
    assert engine.statistics.budgets_missed == 1
    assert [spent.key for spent in engine.take_spent()] == [3]
    add(engine, clock, 4, 100)
    ends = run_all(engine)
    assert finished(ends[4]).total_time_ns <= 100 * MS
    assert 3 not in ends


def test_queue_takes_it_and_is_late() -> None:
    engine, clock = timed_engine(max_running_rows=2)
    add(engine, clock, 1)
    add(engine, clock, 2)
    engine.step()
    add(engine, clock, 3, 20)
    assert finished(run_all(engine)[3]).total_time_ns > 20 * MS
    assert engine.statistics.budgets_missed == 1


@pytest.mark.parametrize("name", ["wino", "remdm", "editing", "freedave"])
def test_strategies_without_haste_refuse_a_budget_by_name(name: str) -> None:
    engine = tiny_engine()
    params = RequestParams(max_new_tokens=8, strategy=s.STRATEGIES[name]())
    request = Request(TokensPrompt((1,)), params, latency_budget_ns=MS)
    with pytest.raises(InvalidRequestError, match=f"strategy {name} cannot be hurried"):
        resolve(request, engine.info, engine.limits, None)
    optional = dataclasses.replace(request, budget_is_optional=True)
    assert resolve(optional, engine.info, engine.limits, None).due_ns is None


@pytest.mark.parametrize("budget_ns", [0, -1, 601 * 10**9])
def test_a_budget_has_limits(budget_ns: int) -> None:
    engine = tiny_engine()
    request = Request(TokensPrompt((1,)), latency_budget_ns=budget_ns)
    with pytest.raises(InvalidRequestError, match="latency_budget") as error:
        resolve(request, engine.info, engine.limits, None)
    assert [violation.field for violation in error.value.violations] == ["latency_budget"]


def test_step_times_learn_a_line_and_never_fall() -> None:
    times = StepTimes()
    for i in range(200):
        tokens, heads = 50 + 37 * (i % 20), 16 + 7 * (i % 9)
        accident = 100.0 if i % 50 == 49 else 0.0
        times.note(tokens, heads, 0.002 + 1e-5 * tokens + 2e-5 * heads + accident)
    for tokens, heads in ((100, 30), (700, 60), (2000, 64)):
        truth = 0.002 + 1e-5 * tokens + 2e-5 * heads
        assert 0.7 * truth < times.seconds(tokens, heads) < 2.5 * truth
    assert times.seconds(10, 1) <= times.seconds(1000, 1) <= times.seconds(1000, 100)


def test_step_times_of_one_size_grow_with_the_tokens() -> None:
    times = StepTimes()
    for _ in range(50):
        times.note(100, 10, 0.01)
    assert times.seconds(100, 10) == pytest.approx(0.01, rel=0.05)
    assert times.seconds(1000, 100) > 0.05


def test_step_times_follow_a_machine_that_has_become_slow() -> None:
    times = StepTimes()
    for _ in range(100):
        times.note(100, 10, 0.01)
    for _ in range(30):
        times.note(100, 10, 0.03)
    assert times.seconds(100, 10) > 0.025


class _Broken(Hurry):
    """A bug of ours, for one step."""

    def prepare(self, rows: Rows[Sequence], scheduler: Scheduler, now_ns: int) -> None:
        raise ZeroDivisionError


def test_a_bug_in_the_forecast_ends_the_requests_of_its_step_and_not_the_engine() -> None:
    engine, clock = timed_engine()
    add(engine, clock, 1, budget_ms=50)
    engine.hurry = _Broken()
    ((key, event),) = engine.step()
    assert key == 1
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFaultError)
    engine.hurry = Hurry()
    add(engine, clock, 2)
    assert finished(run_all(engine)[2]).outputs
