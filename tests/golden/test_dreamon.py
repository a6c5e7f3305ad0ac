"""Growing holes against the published sampler of DreamOn, on the tiny Dream checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tools import GOLDEN, add, finished, run_all, tiny_engine
from tests.growth import growing_checkpoint
from vdiff_grpc.engine.growing import GrowingSequence
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import DreamOrder, DreamSchedule
from vdiff_grpc.engine.types import Request, RequestParams

CASES = json.loads((GOLDEN / "dreamon_generate.json").read_text())["cases"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_every_pass_sees_the_canvas_that_the_references_see(
    case: dict[str, Any], tmp_path: Path
) -> None:
    given = case["params"]
    engine = tiny_engine(
        growing_checkpoint(tmp_path, given["expand_token_id"], given["delete_token_id"])
    )
    seen = []

    def note(rows: Rows[Sequence]) -> None:
        (row,) = rows
        assert isinstance(row, GrowingSequence)
        seen.append(row.ids[row.present].tolist())

    engine.before_step = note
    hole = Hole(min_length=case["min_length"], max_length=given["max_new_tokens"])
    params = RequestParams(
        top_p=given["top_p"],
        top_k=given["top_k"],
        strategy=DreamSchedule(DreamOrder(given["alg"])),
    )
    segments = (tuple(case["prefix"]), hole, tuple(case["suffix"]))
    add(engine, 1, Request(InfillPrompt(segments), params))
    output = finished(run_all(engine)[1]).outputs[0]
    assert seen == case["canvases"]
    ids = [*case["prefix"], *output.tokens.ids, *case["suffix"]]
    assert ids == case["final"]
    assert output.forward_passes == len(case["canvases"])


def test_the_cases_grow_shrink_and_meet_every_limit() -> None:
    """Or the test above would show less than it seems to."""
    assert sum(case["deletions"] > 0 for case in CASES) >= 20
    assert all(case["expansions"] for case in CASES)
    spent = [c for c in CASES if c["expansions"] == c["params"]["expand_budget"]]
    full = [c for c in CASES if c["longest"] == c["params"]["max_new_tokens"]]
    assert min(len(spent), len(full)) >= 5
