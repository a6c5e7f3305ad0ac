"""What is learnt of a step's time."""

from __future__ import annotations

from vdiff_grpc.engine.pace import Pace

MS = 1_000_000


def test_the_margin_covers_a_step_like_the_slowest_recent_one_and_the_answers_way() -> None:
    pace = Pace()
    at_rest = pace.margin_ns
    assert at_rest >= 25 * MS
    pace.note(100 * MS)
    pace.note(10 * MS)
    assert pace.margin_ns >= at_rest + 100 * MS
    for _ in range(100):
        pace.note(10 * MS)
    assert pace.margin_ns <= at_rest + 20 * MS
