"""A latency budget beside a constraint, a hole whose length is chosen, and several candidates."""

from __future__ import annotations

import re

import pytest

from tests.engine.spelled import spelled_checkpoint
from tests.engine.test_constraints import PROMPT
from tests.engine.tools import add, finished, run_all, tiny_engine
from vdiff_grpc.engine.constraints.kinds import RegexConstraint
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Output
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import EntropyBound, FixedSchedule, Strategy
from vdiff_grpc.engine.types import Request, RequestParams

AT_ONCE_NS = 1  # what can never be kept: the utmost haste
PATTERN = "(?:[a-c]{2}, )+(?:yes|no)"


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(spelled_checkpoint(tmp_path_factory.mktemp("spelled")))


def answers(engine: Engine, request: Request) -> tuple[Output, ...]:
    add(engine, 1, request)
    return finished(run_all(engine)[1]).outputs


@pytest.mark.parametrize("strategy", [FixedSchedule(), EntropyBound(0.05)])
def test_what_is_hurried_still_keeps_to_its_constraint(spelled: Engine, strategy: Strategy) -> None:
    for seed in range(12):
        params = RequestParams(
            max_new_tokens=16, block_length=5, temperature=1.0, seed=seed, strategy=strategy
        )
        (output,) = answers(
            spelled,
            Request(
                PROMPT,
                params,
                constraint=RegexConstraint(PATTERN),
                latency_budget_ns=AT_ONCE_NS,
            ),
        )
        assert output.hurried
        assert re.fullmatch(PATTERN, output.text), output.text
        assert output.forward_passes < 16


def test_the_length_of_a_hole_is_chosen_as_ever_and_only_then_is_there_haste() -> None:
    engine = tiny_engine(early_end=False)
    prompt = InfillPrompt(((5, 6, 7), Hole(min_length=2, max_length=9), (8, 9)))
    params = RequestParams(seed=1, strategy=FixedSchedule())
    (slow,) = answers(engine, Request(prompt, params))
    (fast,) = answers(engine, Request(prompt, params, latency_budget_ns=AT_ONCE_NS))
    assert len(fast.canvas) == len(slow.canvas)
    assert (slow.hurried, fast.hurried) == (False, True)
    assert fast.forward_passes < slow.forward_passes
    assert engine.info.mask_token_id not in fast.canvas


def test_hurried_candidates_are_judged_like_others() -> None:
    engine = tiny_engine(early_end=False)
    params = RequestParams(
        max_new_tokens=12, seed=1, temperature=1.0, n=1, best_of=3, strategy=FixedSchedule()
    )
    request = Request(TokensPrompt((5, 6, 7)), params, latency_budget_ns=AT_ONCE_NS)
    (output,) = answers(engine, request)
    assert output.hurried
    assert output.score is not None
    assert output.score < 0
