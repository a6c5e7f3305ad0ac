"""The likelihood of a finished answer against LLaDA's get_log_likelihood.py, with its own masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.engine.tools import GOLDEN, change, tiny_engine
from vdiff_grpc.engine.columns import Action
from vdiff_grpc.engine.likelihood import Scoring, looks, num_masked
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import resolve

CASES = json.loads((GOLDEN / "llada_likelihood.json").read_text())["cases"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_the_likelihood_is_that_of_the_reference(case: dict[str, Any]) -> None:
    engine = tiny_engine(GOLDEN / case["checkpoint"], early_end=False)
    prompt, answer = tuple(case["prompt"]), case["answer"]
    params = RequestParams(
        max_new_tokens=len(answer), best_of=1, cfg_scale=case["params"]["cfg_scale"]
    )
    request = Request(TokensPrompt(prompt), params)
    resolved = resolve(request, engine.info, engine.limits, engine.tokenizer)
    row = Sequence(1, resolved, 0, engine.info, None)
    positions = list(range(len(prompt), len(prompt) + len(answer)))
    change(row, Action.UNMASK, positions, answer)
    assert row.finished
    masks = [np.array(masked) for batch in case["masked"] for masked in batch]
    scoring = Scoring(len(answer), [(look,) for look in looks(row, row.generated, masks)])
    row.memory = scoring
    while scoring.score is None:
        (result,) = engine.runner.step([row])
        assert result.error is None
        assert not result.steps, "the canvas stays as it is"
    assert scoring.log_likelihood == pytest.approx(case["log_likelihood"], abs=1e-3)
    assert scoring.score == scoring.log_likelihood / len(answer)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_as_many_are_masked_as_the_reference_masks(case: dict[str, Any]) -> None:
    for batch in case["masked"]:
        numbers = [len(masked) for masked in batch]
        assert num_masked(numbers[0], len(case["answer"]), len(numbers)) == numbers
