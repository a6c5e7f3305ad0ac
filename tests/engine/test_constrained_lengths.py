"""A constraint beside a hole whose length is chosen: only lengths that it can fill, scored by its path."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.spelled import spelled_checkpoint
from tests.engine.test_hole_lengths import lengths_of, without_passes
from tests.engine.tools import add, finished, run_all, tiny_engine
from vdiff_grpc.engine.constraints.kinds import ChoiceConstraint, Constraint, RegexConstraint
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, DreamSchedule, FixedSchedule
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.errors import InvalidRequestError

NUMBER = RegexConstraint("(?:[0-9]{4})+")
WORDS = ChoiceConstraint(("abcno", "yesage", "no"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spelled_checkpoint(tmp_path_factory.mktemp("spelled"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return tiny_engine(folder)


def asked(*segments: tuple[int, ...] | Hole, **params: Any) -> Request:
    return Request(InfillPrompt(segments), RequestParams(**{"seed": 3} | params))


def open_hole(least: int, most: int, constraint: Constraint) -> Hole:
    return Hole(min_length=least, max_length=most, constraint=constraint)


@pytest.mark.parametrize("seed", range(8))
def test_what_fills_a_hole_of_a_chosen_length_is_valid_and_as_if_it_had_been_asked_for(
    engine: Engine, seed: int
) -> None:
    rng = random.Random(seed)
    strategy = rng.choice([FixedSchedule(), DreamSchedule(), ConfidenceThreshold(0.2)])
    request = asked(
        (1, 2),
        open_hole(rng.randint(1, 3), rng.randint(5, 20), NUMBER),
        (3,),
        Hole(min_length=1, max_length=4),
        (4,),
        open_hole(1, 9, WORDS),
        (5,),
        strategy=strategy,
        temperature=rng.choice([0.0, 1.0]),
        block_length=rng.choice([3, 64]),
        seed=seed,
    )
    add(engine, 1, request)
    events = run_all(engine)[1]
    chosen = finished(events).outputs[0]
    digits, _, word = chosen.hole_texts
    assert re.fullmatch(NUMBER.pattern, digits)
    assert word in WORDS.options

    assert isinstance(request.prompt, InfillPrompt)
    lengths = iter(lengths_of(events))
    fixed = tuple(
        Hole(next(lengths), constraint=s.constraint) if isinstance(s, Hole) else s
        for s in request.prompt.segments
    )
    add(engine, 2, dataclasses.replace(request, prompt=InfillPrompt(fixed)))
    plain = finished(run_all(engine)[2]).outputs[0]
    assert without_passes(chosen) == without_passes(plain)


def test_the_length_is_that_of_the_best_path_with_the_highest_mean_confidence(
    engine: Engine,
) -> None:
    params = {"strategy": ConfidenceThreshold(1e-9), "temperature": 0.0}
    picks = set()
    for before in range(4):
        scores = {}
        for length in range(1, 8):
            request = asked((before, 7), Hole(length, constraint=WORDS), (8,), **params)
            try:
                add(engine, 1, request)
            except InvalidRequestError:
                continue  # more tokens than the longest word has characters
            confidences = finished(run_all(engine)[1]).outputs[0].tokens.confidences
            scores[length] = sum(confidences) / length
        add(engine, 2, asked((before, 7), open_hole(1, 8, WORDS), (8,), **params))
        (picked,) = lengths_of(run_all(engine)[2])
        assert picked == max(scores, key=lambda n: scores[n])
        picks.add(picked)
    assert len(scores) == 6
    assert len(picks) > 1


def test_the_choice_is_the_same_in_company(folder: Path) -> None:
    requests = [
        asked((1, n), open_hole(1, 12, NUMBER if n % 2 else WORDS), (3,), temperature=1.0, seed=n)
        for n in range(8)
    ]
    alone = []
    for request in requests:
        engine = tiny_engine(folder)
        add(engine, 0, request)
        alone.append(finished(run_all(engine)[0]).outputs)
    engine = tiny_engine(folder, max_running_rows=5)
    for key, request in enumerate(requests):
        add(engine, key, request)
    together = run_all(engine)
    assert [finished(together[key]).outputs for key in range(8)] == alone


def test_a_range_without_a_length_that_can_be_filled_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(asked((1,), open_hole(4, 6, ChoiceConstraint(("yes",))), (2,)))
    (violation,) = caught.value.violations
    assert violation.field == "infill.segments[1].hole.constraint.choice"
    assert "no answer has from 4 to 6 tokens" in violation.description


def test_where_one_length_is_left_nothing_has_to_be_chosen(engine: Engine) -> None:
    word = ChoiceConstraint(("q",))
    open_ = asked((1,), open_hole(1, 6, word), (2,), open_hole(1, 3, word), (3,))
    add(engine, 1, open_)
    events = run_all(engine)[1]
    fixed = asked((1,), Hole(1, constraint=word), (2,), Hole(1, constraint=word), (3,))
    add(engine, 2, fixed)
    assert finished(events).outputs == finished(run_all(engine)[2]).outputs
