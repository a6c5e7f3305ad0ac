"""Answers of a given form, as OpenAI's own clients ask for them."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from vdiff_grpc import v1

ASK: Any = [{"role": "user", "content": "Tell me of a cat."}]
BRIEF: Any = {"model": "demo", "temperature": 1.0, "seed": 3}


class Toy(BaseModel):
    colour: Literal["red", "green"]
    price: int | None


class Cat(BaseModel):
    """What is told of it."""

    happy: bool
    toys: list[Toy]


def test_a_chat_answer_is_parsed_into_the_asked_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        messages=ASK, response_format=Cat, max_completion_tokens=60, **BRIEF
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Cat)


def test_a_response_is_parsed_into_the_asked_class(client: openai.OpenAI) -> None:
    given = {"model": "demo", "temperature": 1.0}
    answer = client.responses.parse(
        input="Tell me of a cat.", text_format=Cat, max_output_tokens=60, **given
    )
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Cat)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=ASK, response_format={"type": "json_object"}, max_tokens=24, **BRIEF
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_streamed_answer_has_the_form_too(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        messages=ASK, response_format={"type": "json_object"}, max_tokens=24, stream=True, **BRIEF
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert isinstance(json.loads(text), dict)


def test_vllms_names_of_a_regex_and_a_choice(client: openai.OpenAI) -> None:
    def ask(**extra: Any) -> str:
        answer = client.completions.create(prompt="Once", max_tokens=12, extra_body=extra, **BRIEF)
        return answer.choices[0].text

    assert re.fullmatch("[0-9]{3}-[a-z]+", ask(guided_regex="[0-9]{3}-[a-z]+"))
    assert ask(guided_choice=["a cat", "a dog"]) in ("a cat", "a dog")


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        (
            {"properties": {"a": {"$dynamicRef": "#x"}}},
            "response_format.json_schema.schema.properties.a.$dynamicRef",
        ),
        ({"type": "string", "minLength": 300}, "response_format.json_schema.schema"),
    ],
)
def test_what_cannot_be_is_refused_by_the_clients_own_path(
    client: openai.OpenAI, schema: dict[str, Any], param: str
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=ASK, response_format=form, max_tokens=12, **BRIEF)
    assert caught.value.param == param


def test_over_grpc_a_constraint_without_a_kind_is_refused(demo: Any) -> None:
    spec = v1.GenerationSpec(text="Once", constraint=v1.Constraint())
    with pytest.raises(Exception, match="constraint is not set"):
        demo.generation.Generate(v1.GenerateRequest(spec=spec))
    hole = v1.Hole(length=3, constraint=v1.Constraint(regex="[0-9]{3,9}"))
    segments = [v1.InfillSegment(text="I am "), v1.InfillSegment(hole=hole)]
    segments.append(v1.InfillSegment(text=" years old."))
    spec = v1.GenerationSpec(infill=v1.InfillTemplate(segments=segments))
    reply = demo.generation.Generate(v1.GenerateRequest(spec=spec))
    assert re.fullmatch("[0-9]{3,9}", reply.outputs[0].hole_texts[0])
