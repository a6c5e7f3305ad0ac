"""The replay of bursts: it repeats on its own clock, and its figures are those it names."""

from __future__ import annotations

import pytest

from benchmarks.anytime import BUDGET, SIZES, StepCurve, best_static, replay, serve
from vdiff_grpc.engine.strategies import FixedSchedule

CURVE = StepCurve({size: 0.002 + 0.001 * size for size in SIZES})


def test_arrivals_come_at_the_load_with_budgets_of_their_own_length() -> None:
    asked = replay(CURVE, 2.0, 200, 1)
    steps = sum(one.num_tokens + 1 for one in asked)
    assert asked[-1].at_s == pytest.approx(steps * CURVE(32) / 32 / 2)

    def shown(seed: int) -> list[tuple[float, float, str]]:
        return [(o.at_s, o.budget_s, o.instance.ask) for o in replay(CURVE, 2.0, 200, seed)]

    assert shown(1) == shown(1) != shown(2)
    for one in asked:
        assert one.budget_s == pytest.approx(BUDGET * (one.num_tokens + 1) * CURVE(1))


def test_a_virtual_replay_repeats_and_a_budget_brings_more_in_time() -> None:
    asked = replay(CURVE, 2.0, 40, 1)
    fixed = serve(asked, FixedSchedule(), CURVE, hurried=False, overload="queue")
    ours = serve(asked, FixedSchedule(), CURVE, hurried=True, overload="queue")
    again = serve(asked, FixedSchedule(), CURVE, hurried=True, overload="queue")
    assert ours == again
    assert fixed["hurried"] == 0 < ours["hurried"]
    assert fixed["in time"] < ours["in time"]
    assert fixed["tokens/forward"] < 1 < ours["tokens/forward"]


def test_the_best_static_is_the_upper_edge_of_its_points() -> None:
    static = {0.9: (1.0, 1.0), 0.7: (2.0, 0.5), 0.5: (3.0, 0.8)}
    assert best_static(static, 2.0) == pytest.approx(0.85)
    assert best_static(static, 0.5) == 1.0
    assert best_static(static, 4.0) == 0.8
