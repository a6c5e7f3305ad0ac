"""Tools through OpenAI's own client: the embedded model with a chat template that has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.conftest import RunningServer, running, tiny_config
from tests.engine.told import told_demo
from tests.gateway.conftest import RunningGateway

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "many": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["colour", "many"],
    "additionalProperties": False,
}
PAINT: Any = {
    "type": "function",
    "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA},
}
REST: Any = {"type": "function", "function": {"name": "rest"}}
FLAT: list[Any] = [{"type": "function", "strict": False} | t["function"] for t in (PAINT, REST)]
ASK: list[Any] = [{"role": "user", "content": "A cat."}]
FEW: dict[str, Any] = {"steps": 9}  # what is valid is so in however few steps
BRIEF: dict[str, Any] = {"model": "demo", "max_tokens": 72, "temperature": 0.8, "seed": 3}
BRIEF |= {"extra_body": FEW}
ONE: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
CHAT = BRIEF | {"messages": ASK, "tools": [PAINT, REST]}
RESPOND: dict[str, Any] = {
    "model": "demo",
    "input": "A cat.",
    "tools": FLAT,
    "max_output_tokens": 72,
    "temperature": 0.8,
    "extra_body": FEW | {"seed": 3},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    path = told_demo(tmp_path_factory.mktemp("told"))
    with running(tiny_config(model=str(path), served_model_name=("demo",))) as server:
        gateway = RunningGateway(server.address)
        yield gateway
        gateway.close()


@pytest.fixture
def teller(told: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{told.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def arguments_of(name: str, arguments: str) -> Any:
    """Valid ones."""
    given = json.loads(arguments)
    jsonschema.validate(given, SCHEMA if name == "paint" else {"const": {}})
    return given


def test_a_required_call_has_openais_shape(teller: openai.OpenAI) -> None:
    (choice,) = teller.chat.completions.create(**CHAT, **ONE).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    arguments_of(call.function.name, call.function.arguments)


def test_the_named_function_is_called_by_a_model_with_tools_and_by_one_without(
    teller: openai.OpenAI, client: openai.OpenAI
) -> None:
    named: Any = {"type": "function", "function": {"name": "paint"}}
    for one in (teller, client):
        assert one.models.retrieve("demo").model_dump()["supports_tools"] is (one is teller)
        answer = one.chat.completions.create(**CHAT, tool_choice=named, n=2)
        for choice in answer.choices:
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert call.type == "function"
            assert call.function.name == "paint"
            arguments_of("paint", call.function.arguments)
        assert (
            len({c.message.tool_calls[0].id for c in answer.choices if c.message.tool_calls}) == 2
        )


def test_an_automatic_answer_may_be_text(teller: openai.OpenAI) -> None:
    (choice,) = teller.chat.completions.create(**CHAT).choices
    calls = choice.message.tool_calls or []
    assert bool(choice.message.content) or calls
    assert choice.finish_reason == ("tool_calls" if calls else choice.finish_reason)
    # a call or what response_format says
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1]}}}
    (choice,) = teller.chat.completions.create(**CHAT, response_format=form).choices
    assert choice.message.content == "1" or choice.message.tool_calls


@pytest.mark.parametrize("extra", [ONE, {}, {"logprobs": True}], ids=str)
def test_a_stream_tells_what_the_whole_answer_has(
    teller: openai.OpenAI, extra: dict[str, Any]
) -> None:
    fields = CHAT | {"n": 2} | extra
    whole = teller.chat.completions.create(**fields)
    texts, calls, reasons, probabilities = {}, {}, {}, {0: 0, 1: 0}  # type: ignore[var-annotated]
    for chunk in teller.chat.completions.create(**fields, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.logprobs is not None:
            probabilities[choice.index] += len(choice.logprobs.content or ())
        for part in choice.delta.tool_calls or ():
            at = (choice.index, part.index)
            assert part.function is not None
            if at not in calls:
                assert part.id is not None
                assert part.type == "function"
                assert part.function.arguments == ""
                calls[at] = [part.function.name, ""]
            else:
                assert (part.id, part.type, part.function.name) == (None, None, None)
            calls[at][1] += part.function.arguments or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == (choice.message.content or "")
        assert reasons[choice.index] == choice.finish_reason
        if choice.logprobs is not None:
            assert probabilities[choice.index] == len(choice.logprobs.content or ())
        for number, call in enumerate(choice.message.tool_calls or ()):
            assert call.type == "function"
            told = calls.pop((choice.index, number))
            assert told == [call.function.name, call.function.arguments]
    assert not calls


class Paint(BaseModel):
    """Paints."""

    colour: str
    many: int


def test_the_clients_own_helpers_parse_the_arguments(teller: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Paint, name="paint")
    fields = CHAT | {"tools": [tool], "max_tokens": 100} | ONE
    parsed = teller.chat.completions.parse(**fields).choices[0].message.tool_calls
    assert parsed
    assert isinstance(parsed[0].function.parsed_arguments, Paint)
    with teller.chat.completions.stream(**fields) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds
    assert final
    assert final[0].function.parsed_arguments == parsed[0].function.parsed_arguments


def test_what_a_tool_returned_goes_back(teller: openai.OpenAI) -> None:
    message = teller.chat.completions.create(**CHAT, **ONE).choices[0].message
    assert message.tool_calls
    said: list[Any] = [*ASK, message.model_dump(exclude_none=True)]
    said.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"})
    answer = teller.chat.completions.create(**CHAT | {"messages": said, "tool_choice": "none"})
    assert answer.choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="no call before it"):
        teller.chat.completions.create(**CHAT | {"messages": [*ASK, said[-1]]})


# --- the responses API -----------------------------------------------------------


def test_a_response_has_its_calls_as_items_and_takes_them_back(teller: openai.OpenAI) -> None:
    raw = teller.responses.with_raw_response.create(**RESPOND, **ONE)
    response = Response.model_validate_json(raw.text, strict=True)
    (item,) = response.output
    assert item.type == "function_call"
    assert (response.status, item.status) == ("completed", "completed")
    arguments_of(item.name, item.arguments)
    assert response.tool_choice == "required"
    assert [tool.name for tool in response.tools if tool.type == "function"] == ["paint", "rest"]
    output = {"type": "function_call_output", "call_id": item.call_id, "output": "done"}
    said: list[Any] = [{"role": "user", "content": "A cat."}, item.model_dump(), output]
    named: Any = {"type": "function", "name": "rest"}
    after = teller.responses.create(**RESPOND | {"input": said}, tool_choice=named)
    (item,) = after.output
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("rest", "{}")


@pytest.mark.parametrize(
    "extra",
    [
        ONE,
        {},
        {"include": ["message.output_text.logprobs"]},
        {"extra_body": FEW | {"seed": 3, "diffusing": True}},
    ],
    ids=str,
)
def test_a_streamed_response_adds_up_to_the_whole(
    teller: openai.OpenAI, extra: dict[str, Any]
) -> None:
    plain = {k: v for k, v in extra.items() if k != "extra_body"}
    whole = teller.responses.create(**RESPOND | plain)
    items: dict[int, Any] = {}
    pieces: dict[int, str] = {}
    numbers = []
    for event in teller.responses.create(**RESPOND | extra, stream=True):
        numbers.append(event.sequence_number)
        match event.type:
            case "response.output_item.added":
                assert event.output_index == len(pieces)
                pieces[event.output_index] = ""
            case "response.function_call_arguments.delta" | "response.output_text.delta":
                pieces[event.output_index] += event.delta
            case "response.function_call_arguments.done":
                assert event.arguments == pieces[event.output_index]
            case "response.output_item.done":
                items[event.output_index] = event.item
            case "response.completed" | "response.incomplete":
                final = event.response
    assert numbers == list(range(len(numbers)))
    assert final.output == [items[index] for index in range(len(items))]

    def told(response: Response) -> list[Any]:
        return [
            (item.name, item.arguments) if item.type == "function_call" else item.content[0].text  # type: ignore[union-attr]
            for item in response.output
        ]

    expected = told(whole)
    if "extra_body" in extra and isinstance(expected[0], tuple):
        expected = ["", *expected]  # the message in which `diffusion` was told
    assert told(final) == expected
    assert (final.status, final.usage) == (whole.status, whole.usage)
    with_probabilities = "include" in extra
    for item in final.output:
        if item.type == "message":
            assert bool(item.content[0].logprobs) is with_probabilities  # type: ignore[union-attr]


# --- refusals --------------------------------------------------------------------


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


BAD = {"type": "object", "properties": {"a": {"$dynamicRef": "#x"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [named("a b")]}, "tools[0].function.name"),
        ({"tools": [named("f"), named("f")]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [named(f"f{n}") for n in range(129)]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": BAD}}]},
            "tools[0].function.parameters.properties.a.$dynamicRef",
        ),
        ({"tool_choice": named("g")}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": None, "tool_choice": named("f")}, "tool_choice"),
        ({"stop": "x"}, "stop"),
        ({"strategy": {"type": "freedave"}}, "tools"),
        ({"tool_choice": "required", "max_tokens": 9}, "tools"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_is_refused_by_name(
    told: RunningGateway, fields: dict[str, Any], param: str
) -> None:
    body = {k: v for k, v in CHAT.items() if k != "extra_body"} | fields
    reply = httpx.post(f"{told.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": [FLAT[0] | {"parameters": BAD}]},
            "tools[0].parameters.properties.a.$dynamicRef",
        ),
        ({"tools": [FLAT[0], FLAT[0]]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_response_cannot_have_is_refused_by_name(
    told: RunningGateway, fields: dict[str, Any], param: str
) -> None:
    body = {k: v for k, v in RESPOND.items() if k != "extra_body"} | fields
    reply = httpx.post(f"{told.url}/v1/responses", json=body, timeout=30)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_without_tools_in_the_template_automatic_calls_are_refused(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="no form of calls") as caught:
        client.chat.completions.create(**CHAT)
    assert caught.value.param == "tool_choice"
