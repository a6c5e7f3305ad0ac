"""docs/tuning.md says what docs/decoding.json has."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.commands import ROOT, page

MEASURED = {
    row["setting"]: row for row in json.loads((ROOT / "docs" / "decoding.json").read_text())["rows"]
}


@pytest.mark.parametrize("strategy", ["confidence_threshold", "entropy_bound"])
def test_the_thresholds_figures_are_the_curves(strategy: str) -> None:
    table = re.search(rf"^\| `{strategy}` \|.*\n\|---.*\n((?:\|.*\n)+)", page("tuning.md"), re.M)
    assert table is not None
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \|$", table[1], re.M)
    assert len(rows) >= 5
    for value, per_pass, right in rows:
        row = MEASURED[f"{strategy} {value}"]
        assert (per_pass, right) == (
            f"{row['tokens/forward']:.2f}",
            f"{100 * row['accuracy']:.1f}",
        )


def test_one_block_is_the_curve_itself() -> None:
    cells = re.search(r"^\| 32 \| (.*) \|$", page("tuning.md"), re.M)
    assert cells is not None
    settings = ("entropy_bound 0.05", "confidence_threshold 0.95", "confidence_threshold 0.8")
    assert cells[1].split(" | ") == [
        f"{100 * MEASURED[name]['accuracy']:.1f} % @ {MEASURED[name]['tokens/forward']:.2f}"
        for name in settings
    ]
