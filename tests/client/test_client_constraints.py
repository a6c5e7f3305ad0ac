"""Constraints and infill templates, as the client's functions make them."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from vdiff_grpc import v1
from vdiff_grpc.client import Client, choice, hole, json_schema, regex, template


class Cat(BaseModel):
    happy: bool
    colour: Literal["red", "green"]


def test_a_schema_is_a_dict_its_text_or_a_pydantic_class() -> None:
    schema = {"type": "object", "properties": {"name": {"const": "Zoë"}}}
    text = '{"type": "object", "properties": {"name": {"const": "Zoë"}}}'
    assert json_schema(schema) == json_schema(text) == v1.Constraint(json_schema=text)
    assert json_schema(True) == v1.Constraint(json_schema="true")
    assert json_schema(Cat) == json_schema(Cat.model_json_schema())


@pytest.mark.parametrize("wrong", [{"const": {1, 2}}, {"const": float("nan")}])
def test_a_schema_that_is_no_json_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="json_schema cannot be written as JSON: "):
        json_schema(wrong)


def test_a_bare_pattern_is_no_constraint() -> None:
    with pytest.raises(TypeError, match=r"constraint \('\[0-9\]\+'\) must be regex\(\.\.\.\)"):
        hole(2, constraint="[0-9]+")  # type: ignore[arg-type]


def test_a_template_is_text_with_holes() -> None:
    assert template("Tom had a {{2}} ball. He {{2..12}} went home.") == [
        "Tom had a ",
        hole(2),
        " ball. He ",
        hole(min_length=2, max_length=12),
        " went home.",
    ]
    assert template("{{1}}{{3}}") == [hole(1), hole(3)]


@pytest.mark.parametrize(
    ("inside", "constraint"),
    [
        ("regex=[0-9]+", regex("[0-9]+")),
        ("regex=[0-9]{2}", regex("[0-9]{2}")),
        ("regex=", regex("")),
        ("choice=red|dark blue", choice("red", "dark blue")),
        ('json_schema={"a": {"b": {}}, "c": 1}', json_schema('{"a": {"b": {}}, "c": 1}')),
        ("json_schema=true", json_schema(True)),
    ],
)
def test_a_hole_of_a_template_may_have_a_constraint(inside: str, constraint: v1.Constraint) -> None:
    assert template(f"a {{{{4:{inside}}}}} b") == ["a ", hole(4, constraint=constraint), " b"]
    ranged = hole(min_length=1, max_length=4, constraint=constraint)
    assert template(f"{{{{1..4:{inside}}}}}") == [ranged]


def test_a_backslash_makes_braces_of_a_hole() -> None:
    assert template(r"\{{4}} {{1}} \\{{2}}\n}}") == ["{{4}} ", hole(1), " \\", hole(2), r"\n}}"]


def written(text: str, *, before_hole: bool) -> str:
    """A given text as a template has it."""
    tail = ""
    if before_hole:
        found = re.fullmatch(r"(.*?)(\\*)(\{*)", text, re.DOTALL)
        assert found is not None
        text, tail = found[1], found[2] * 2 + found[3]
    return re.sub(r"(\\*)(\{{2,})", r"\1\1\\\2", text) + tail


@given(st.lists(st.text(r"\{} a2.", max_size=8), min_size=2, max_size=4))
def test_any_text_can_be_written_around_holes(texts: list[str]) -> None:
    *before, last = texts
    whole = "{{7}}".join([*(written(t, before_hole=True) for t in before), ""])
    segments = template(whole + written(last, before_hole=False))
    told = "".join(segment if isinstance(segment, str) else "hole" for segment in segments)
    assert told == "hole".join(texts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no hole", "the template has no hole"),
        (r"\{{2}}", "the template has no hole"),
        ("a {{two}} b", "{{two}} b is not a hole, which is {{4}}, {{2..9}} or"),
        ("a {{2-4}}", "{{2-4}} is not a hole"),
        ("a {{2:color=red}}", "{{2:color=red}} is not a hole"),
        ("a {{2", "{{2 is not a hole"),
        ("a {{2:regex=b", "{{2:regex=b does not end with }}"),
        ("{{2:json_schema={}", "{{2:json_schema={} does not end with JSON and }}"),
        ("{{2:json_schema=no}} b", "does not end with JSON and }}"),
        ("{{" + "x" * 90, "{{" + "x" * 38 + "... is not a hole"),
    ],
)
def test_what_is_no_template_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        template(text)


def test_the_server_holds_the_answer_and_every_hole_to_its_constraint(demo_address: str) -> None:
    brief = {"temperature": 1.0, "seed": 3}
    with Client(demo_address) as client:
        number = client.generate("He was", constraint=regex(" [0-9]{3}"), **brief)  # type: ignore[arg-type]
        assert re.fullmatch(" [0-9]{3}", number.outputs[0].text)
        cat = client.generate(
            "A cat: ",
            constraint=json_schema(Cat),
            max_new_tokens=60,
            **brief,  # type: ignore[arg-type]
        )
        Cat.model_validate_json(cat.outputs[0].text)
        document = template("He had {{2:choice= red| green}} toys and {{3:regex= [0-9]+}} cats.")
        holes = client.generate(infill=document, **brief).outputs[0].hole_texts  # type: ignore[arg-type]
        assert holes[0] in (" red", " green")
        assert re.fullmatch(" [0-9]+", holes[1])
