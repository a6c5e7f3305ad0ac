"""The benchmarks of a step at their smallest: they measure what they say, and leave the engine be."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scale, scale_plot, shapes, step
from tests.docs.commands import ROOT, page
from tests.engine.tools import add, finished, run, tiny_engine
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import Request, RequestParams

SHAPE = shapes.Shape(vocab=512, hidden=64, intermediate=128)
BASE = scale.Setting(rows=2, canvas=96, prompt=32, vocab=512)


def test_a_steps_parts_are_all_timed_and_the_engine_is_as_before(tmp_path: Path) -> None:
    engine = tiny_engine(shapes.write(tmp_path, SHAPE), early_end=False)
    params = RequestParams(max_new_tokens=32, strategy=FixedSchedule(), temperature=1.0)
    found = step.measure(engine, params, num_rows=2, num_steps=4)
    # the first step is not timed
    assert (found["rows"], found["steps"], found["tokens"], found["forwards"]) == (2, 4, 10, 10)
    parts = [found[name] for name in step.PHASES]
    assert all(part > 0 for part in parts), found
    assert sum(parts) < 2 * found["step ms"]
    assert found["bare ms"] > 0
    assert found["report bytes"] > 100
    assert not engine.has_work
    seconds = [function for owner in (engine, engine.runner) for function in vars(owner)]
    assert not {"_apply", "_decode", "forward", "_tell"} & set(seconds), "nothing is timed now"
    assert finished(run(engine, Request(TokensPrompt((1,)), params))).outputs[0].steps == 32


def test_time_inside_a_part_is_counted_once() -> None:
    ticks = iter([0.0, 1.0, 4.0, 6.0])
    watch = step.Stopwatch(lambda: next(ticks))
    watch.enter("outer")
    watch.enter("inner")
    watch.leave()
    watch.leave()
    assert watch.spent_s == {"outer": 1.0 + 2.0, "inner": 3.0}


def test_growth_is_time_over_arithmetic_from_the_smallest_size_on() -> None:
    lines = {"vocabulary": (512, 1024), "rows": (2, 1)}
    rows = scale.measure(lines, BASE, SHAPE, num_steps=2, threads=1)
    assert [(row["line"], row["size"]) for row in rows] == [
        ("vocabulary", 512),
        ("vocabulary", 1024),
        ("rows", 1),
        ("rows", 2),
    ]
    for first, second in (rows[:2], rows[2:]):
        assert first["growth"] == pytest.approx(1)
        grown = second["Mflop"] / first["Mflop"]
        assert second["predicted ms"] == pytest.approx(first["step ms"] * grown)
        assert second["growth"] == pytest.approx(second["step ms"] / second["predicted ms"])
        assert 0 < second["beyond"] < 1
    assert rows[3]["Mflop"] == pytest.approx(2 * rows[2]["Mflop"])
    drawing = ET.fromstring(scale_plot.draw(rows))
    assert len(drawing.findall(".//{*}circle")) == len(rows)
    assert len(drawing.findall(".//{*}polyline")) == 4


def test_the_arithmetic_counts_what_torch_computes(tmp_path: Path) -> None:
    """Nothing is filled up here: packed tokens and head rows are multiples of 32."""
    engine = tiny_engine(shapes.write(tmp_path, SHAPE))
    setting = dataclasses.replace(BASE, canvas=128)
    params = RequestParams(
        max_new_tokens=96, block_length=32, strategy=FixedSchedule(), ignore_eos=True
    )
    for key in range(setting.rows):
        add(engine, key, Request(TokensPrompt((5,) * setting.prompt), params))
    # torch counts attention in its plainest form only
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.step()
    assert counter.get_total_flops() == pytest.approx(setting.flops(SHAPE, 1), rel=1e-6)


def test_the_pages_figures_are_the_runs() -> None:
    rows = json.loads((ROOT / "docs" / "step.json").read_text())["rows"]
    assert step.page(rows) in page("step-results.md")
    sizes = json.loads((ROOT / "docs" / "scale.json").read_text())["rows"]
    assert scale_plot.draw(sizes) == (ROOT / "docs" / "scale.svg").read_text()
    assert scale.page(sizes) in page("step-results.md")


def test_the_mark_is_held_in_the_run_that_is_shown() -> None:
    """At temperature 0 and 16 rows at most 5 % of a step are not the bare forward pass."""
    rows = json.loads((ROOT / "docs" / "step.json").read_text())["rows"]
    shares = {
        row["strategy"]: row["beyond"]
        for row in rows
        if (row["model"], row["T"], row["rows"]) == ("demo", 0, 16)
    }
    assert set(shares) == set(step.STRATEGIES)
    assert shares["fixed_schedule"] <= 0.05
    assert shares["entropy_bound"] <= 0.05
