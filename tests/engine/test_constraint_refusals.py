"""Constraints that cannot be met, or be built in time; and what is built of the others."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from tests.engine.spelled import spelled_checkpoint
from tests.engine.test_constraints import PROMPT
from tests.engine.tools import tiny_engine
from vdiff_grpc.engine.constraints import compiler
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.constraints.kinds import (
    ChoiceConstraint,
    Constraint,
    ConstraintError,
    JsonSchemaConstraint,
    RegexConstraint,
)
from vdiff_grpc.engine.constraints.regex_process import compile_regex
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt
from vdiff_grpc.engine.strategies import (
    Editing,
    FreeDave,
)
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.errors import InvalidRequestError


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(spelled_checkpoint(tmp_path_factory.mktemp("spelled")))


# --- refusals, before any forward pass ---------------------------------------------


def refusal(engine: Engine, request: Request) -> dict[str, str]:
    before = engine.statistics
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(request)
    assert engine.statistics == before
    return {v.field: v.description for v in caught.value.violations}


def constrained(constraint: Constraint, **params: Any) -> Request:
    return Request(PROMPT, RequestParams(max_new_tokens=8, **params), constraint=constraint)


@pytest.mark.parametrize(
    ("constraint", "field", "why"),
    [
        (RegexConstraint("("), "constraint.regex", "cannot be built"),
        (RegexConstraint(")|(?:"), "constraint.regex", "cannot be built"),
        (RegexConstraint("a(?=b)"), "constraint.regex", "cannot be built"),
        (RegexConstraint("(?:a|^b)c"), "constraint.regex", "anchors"),
        (RegexConstraint("a\0"), "constraint.regex", "NUL"),
        (RegexConstraint("[a&&b]"), "constraint.regex", "no text satisfies it"),
        (RegexConstraint("a" * 40000), "constraint.regex", "the limit is 32768"),
        (RegexConstraint("[a-c]{99}"), "constraint.regex", "more than there are (8)"),
        (RegexConstraint("Ω"), "constraint.regex", "cannot write"),
        (RegexConstraint("[a-z]{0,4200}"), "constraint.regex", "states"),
        (ChoiceConstraint(()), "constraint.choice.options", "0 options"),
        (ChoiceConstraint(("a", "")), "constraint.choice.options[1]", "empty"),
        (JsonSchemaConstraint("{"), "constraint.json_schema", "no JSON"),
        (
            JsonSchemaConstraint('{"properties":{"a":{"items":{"not":{"pattern":"a"}}}}}'),
            "constraint.json_schema.properties.a.items.not",
            "not supported",
        ),
        (
            JsonSchemaConstraint('{"$defs":{"t":{"minItems":1,"items":{"$ref":"#/$defs/t"}}},"$ref":"#/$defs/t"}'),
            "constraint.json_schema.$ref.items.$ref.items.$ref.items.$ref",
            "refers to itself",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_field(
    engine: Engine, constraint: Constraint, field: str, why: str
) -> None:
    found = refusal(engine, constrained(constraint))
    assert why in found[field], found


def test_what_stands_beside_a_constraint_is_refused(engine: Engine) -> None:
    yes = ChoiceConstraint(("yes",))
    for strategy in (Editing(), FreeDave()):
        assert strategy.NAME in refusal(engine, constrained(yes, strategy=strategy))["constraint"]
    assert "sampling.stop" in refusal(engine, constrained(yes, stop_strings=("a",)))
    infill = InfillPrompt(((1,), Hole(2), (2,)))
    assert "constraint" in refusal(engine, Request(infill, constraint=yes))
    exact = refusal(engine, constrained(yes, ignore_eos=True))
    assert "exactly 8 tokens" in exact["constraint.choice"]
    open_before = InfillPrompt(((1,), Hole(2), Hole(4, constraint=yes)))
    found = refusal(engine, Request(open_before))
    assert "right before" in found["infill.segments[2].hole.constraint.choice"]
    assert "no tokenizer" in refusal(tiny_engine(), constrained(yes))["constraint"]


def test_a_hostile_regex_ends_in_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "BUILD_S", 0.5)
    found = refusal(engine, constrained(RegexConstraint("(a{1,100}){1,100}")))
    assert "more than 0.5 s" in found["constraint.regex"]


def test_an_automaton_is_the_same_in_every_process() -> None:
    constraint = JsonSchemaConstraint('{"properties":{"a":{"type":"string"},"b":{"enum":[1,12]}}}')
    one, other = (compiler.byte_automaton(compiler.regex_of(constraint)) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_built_automata_are_kept_within_bounds(engine: Engine) -> None:
    def vocabulary() -> Any:
        return engine._compiler._make()

    kept = Compiler(vocabulary, max_bytes=1)
    first = kept.build(ChoiceConstraint(("yes",)))
    assert kept.build(ChoiceConstraint(("yes",))) is first
    kept.build(ChoiceConstraint(("no",)))
    assert kept.build(ChoiceConstraint(("yes",))) is not first


# --- the automata -------------------------------------------------------------------

compiled = lru_cache(compile_regex)


def matches(pattern: str, text: str) -> bool:
    table, accepting = compiled(pattern)
    state = 0
    for byte in text.encode():
        state = int(table[state, byte]) if state >= 0 else -1
    return state >= 0 and bool(accepting[state])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("a|ab", "ab"), ("a*?b?", "aab"), ("a??", "a"), ("(?:|no)", "no"), ('[^"]*', "é€😀")],
)
def test_the_whole_text_matches_whatever_a_search_would_prefer(pattern: str, text: str) -> None:
    assert matches(pattern, text)
    assert re.fullmatch(pattern, text)
    assert not matches(pattern, text + '"')


@pytest.mark.parametrize("seed", range(6))
def test_limits_of_numbers_are_kept_to_the_last_digit(seed: int) -> None:
    rng = random.Random(seed)
    low, high = sorted((rng.randint(-1200, 1200), rng.randint(-1200, 1200)))
    keywords = rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    limits = dict(zip(keywords, (low, high), strict=True))
    for kind, step in (("integer", 1.0), ("number", 0.5)):
        schema = {"type": kind, **limits}
        try:
            pattern = compiler.regex_of(JsonSchemaConstraint(json.dumps(schema)))
        except ConstraintError:
            assert high - low <= 2
            continue
        for value in np.arange(low - 3, high + 3, step).tolist():
            text = f"{value:g}"
            is_in = low <= value <= high and not (keywords[0][0] == "e" and value in (low, high))
            assert matches(pattern, text) == is_in, (schema, text)
