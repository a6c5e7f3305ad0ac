"""Twenty times as many callers as there are places: refusals are quick, the rest is as ever."""

from __future__ import annotations

import pytest

from benchmarks.health import measure

SPANS_S = [3.0, pytest.param(30.0, marks=[pytest.mark.long, pytest.mark.timeout(300)])]


@pytest.mark.parametrize("span_s", SPANS_S)
def test_a_flood_is_refused_and_neither_health_nor_the_accepted_suffer(span_s: float) -> None:
    seen = measure(span_s, factor=20)
    print(seen)
    assert seen.answered > 0
    assert seen.refused > seen.answered, "no flood"
    assert (seen.wrong, seen.failed, seen.refused_without_retry_info) == (0, 0, 0)
    # Generous: other work shares the machine. docs/robustness.md has measured figures.
    assert seen.health_p99_ms < 2000
    assert seen.memory_last_mib - seen.memory_first_mib < 32
