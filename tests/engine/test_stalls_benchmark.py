"""The benchmark of stalls runs, and counts what turns do."""

from __future__ import annotations

from benchmarks.stalls import measure, measure_prompts


def test_with_turns_a_long_canvas_is_in_fewer_of_a_short_ones_steps() -> None:
    off, on = measure(long=256, short=32, num_steps=8, targets=[64], num_rounds=1)
    assert (off["steps"], off["of the long"]) == (8, 8)
    assert on["steps"] == 8
    assert 1 <= on["of the long"] <= 2


def test_a_long_prompt_is_read_in_so_many_steps_as_its_pages_take() -> None:
    whole, paged = measure_prompts(prompt=256, limits=[64], num_rounds=1, width=64, layers=1)
    # what is left of it, less than a page, comes with its first step
    assert (whole["steps to read"], paged["steps to read"]) == (2, 5)
    assert whole["longest gap"] == 1
