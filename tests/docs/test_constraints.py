"""docs/constraints.md says what docs/constraints.json and constraints-coverage.json have."""

from __future__ import annotations

import json

from tests.docs.commands import ROOT, page


def test_the_tables_are_what_was_measured() -> None:
    costs = json.loads((ROOT / "docs" / "constraints.json").read_text())
    covered = json.loads((ROOT / "docs" / "constraints-coverage.json").read_text())
    text = page("constraints.md")
    lines = [
        f"| {r['constraint']} | {r['built in']} | {r['states']} | {r['classes']} | {r['a step']} | {r['share']} |"
        for r in costs["rows"]
    ]
    lines += [
        f"| {r['strategy']} | {r['passes without']} | {r['with']} | {r['saved']} |"
        for r in costs["free_commits"]
    ]
    lines += [
        f"| {r['set']} | {r['schemas']} | {r['built']} | {r['share']} | {r['drawn']} | {r['unsound']} |"
        for r in covered["rows"]
        if r["kind"] == "bench"
    ]
    assert [line for line in lines if line not in text] == []
    assert all(row["unsound"] == 0 for row in covered["rows"])
