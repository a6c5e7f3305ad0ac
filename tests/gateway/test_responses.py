"""POST /v1/responses, as the openai client sees it."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText

from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_refusals import error_of
from vdiff_grpc import v1

SAID = "Tell me a story about a dog."
FIELDS: dict[str, Any] = {"model": "demo", "input": SAID, "max_output_tokens": 24}
SEED: dict[str, Any] = {"extra_body": {"seed": 1}}
LOGPROBS: Any = ["message.output_text.logprobs"]


def respond(client: openai.OpenAI, **fields: Any) -> Response:
    response: Response = client.responses.create(**(FIELDS | SEED | fields))
    return response


def chat(client: openai.OpenAI, *messages: tuple[str, str], **fields: Any) -> Any:
    said: Any = [{"role": role, "content": content} for role, content in messages]
    given: dict[str, Any] = {"model": "demo", "max_completion_tokens": 24, "seed": 1}
    return client.chat.completions.create(messages=said, **(given | fields))


def message_of(response: Response) -> ResponseOutputMessage:
    (item,) = response.output
    assert isinstance(item, ResponseOutputMessage)
    return item


def part_of(response: Response) -> ResponseOutputText:
    (part,) = message_of(response).content
    assert isinstance(part, ResponseOutputText)
    return part


def test_a_response_is_what_chat_answers(client: openai.OpenAI) -> None:
    response = respond(client)
    answer = chat(client, ("user", SAID))
    assert response.output_text == answer.choices[0].message.content
    assert response.output_text
    message = message_of(response)
    assert (message.role, message.status) == ("assistant", response.status)
    assert part_of(response).annotations == []
    assert part_of(response).logprobs == []
    assert response.id.startswith("resp_")
    assert message.id.startswith("msg_")
    assert (response.object, response.model, response.error) == ("response", "demo", None)
    assert response.created_at > 1_700_000_000
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    )
    assert usage.input_tokens_details.cached_tokens == 0
    assert usage.output_tokens_details.reasoning_tokens == 0


async def test_the_asynchronous_client_gets_the_same(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    response = await aclient.responses.create(**FIELDS, **SEED)
    assert response.output_text == respond(client).output_text


def test_the_reply_passes_openais_own_types_strictly(client: openai.OpenAI) -> None:
    for fields in ({}, {"include": LOGPROBS, "top_logprobs": 2}):
        raw = client.responses.with_raw_response.create(**FIELDS, **SEED, **fields)
        assert raw.headers["content-type"] == "application/json"
        assert raw.headers["x-request-id"]
        strict = Response.model_validate_json(raw.text, strict=True)
        assert strict == raw.parse()
        assert strict.model_extra == {"store": False}  # which OpenAI sends too


def test_the_reply_tells_what_was_used_and_what_was_sent(client: openai.OpenAI) -> None:
    response = respond(
        client,
        instructions="You tell stories.",
        temperature=0.5,
        top_p=0.9,
        metadata={"a": "b"},
        store=True,
        parallel_tool_calls=False,
        tool_choice="none",
    )
    assert (response.temperature, response.top_p) == (0.5, 0.9)
    assert (response.max_output_tokens, response.instructions) == (24, "You tell stories.")
    assert response.metadata == {"a": "b"}
    assert (response.tool_choice, response.tools) == ("none", [])
    assert response.parallel_tool_calls is False
    assert response.model_dump()["store"] is False, "nothing is stored"
    # The defaults are told too.
    plain = respond(client, max_output_tokens=openai.omit)
    info = client.responses.with_raw_response.create(model="demo", input="x")
    assert plain.max_output_tokens == info.parse().max_output_tokens == 128
    assert (plain.temperature, plain.top_p, plain.metadata) == (0.7, 1.0, {})


def test_the_model_is_named_as_the_client_has_it(client: openai.OpenAI) -> None:
    assert respond(client, model="demo-alias").model == "demo-alias"
    assert respond(client, model="").model == "demo"


def test_instructions_are_the_first_message(client: openai.OpenAI) -> None:
    told = respond(client, instructions="You tell stories.")
    answer = chat(client, ("system", "You tell stories."), ("user", SAID))
    assert told.output_text == answer.choices[0].message.content
    assert told.usage is not None
    assert told.usage.input_tokens == answer.usage.prompt_tokens


@pytest.mark.parametrize("kind", ["typed", "short"])
def test_a_conversation_is_a_list_of_messages(client: openai.OpenAI, kind: str) -> None:
    parts = [
        {"type": "input_text", "text": "Tell me a story"},
        {"type": "input_text", "text": " about a cat."},
    ]
    said = [{"type": "output_text", "text": "The cat had a hat.", "annotations": []}]
    items: Any = [
        {"role": "developer", "content": "You tell stories."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": said, "id": "msg_1", "status": "completed"},
        {"role": "user", "content": "And a bird?"},
    ]
    if kind == "typed":
        items = [{"type": "message"} | item for item in items]
    answer = chat(
        client,
        ("system", "You tell stories."),
        ("user", "Tell me a story about a cat."),
        ("assistant", "The cat had a hat."),
        ("user", "And a bird?"),
    )
    response = respond(client, input=items)
    assert response.output_text == answer.choices[0].message.content
    assert response.usage is not None
    assert response.usage.input_tokens == answer.usage.prompt_tokens


def test_an_output_can_be_the_next_input(client: openai.OpenAI) -> None:
    first = respond(client)
    turn: Any = [
        {"role": "user", "content": SAID},
        *first.output,
        {"role": "user", "content": "And then?"},
    ]
    answer = chat(client, ("user", SAID), ("assistant", first.output_text), ("user", "And then?"))
    assert respond(client, input=turn).output_text == answer.choices[0].message.content


def test_a_full_canvas_is_incomplete_and_an_end_is_complete(client: openai.OpenAI) -> None:
    full = respond(client, extra_body={"seed": 1, "ignore_eos": True})
    assert full.status == message_of(full).status == "incomplete"
    assert full.incomplete_details is not None
    assert full.incomplete_details.reason == "max_output_tokens"
    assert full.usage is not None
    assert full.usage.output_tokens == 24
    stop = full.output_text.split()[2]
    cut = respond(client, extra_body={"seed": 1, "ignore_eos": True, "stop": stop})
    assert cut.output_text == full.output_text[: full.output_text.index(stop)]
    assert (cut.status, cut.incomplete_details) == ("completed", None)
    assert message_of(cut).status == "completed"


def test_probabilities_are_those_of_chat(client: openai.OpenAI) -> None:
    response = respond(client, include=LOGPROBS, top_logprobs=3)
    told = chat(client, ("user", SAID), logprobs=True, top_logprobs=3).choices[0].logprobs
    entries = part_of(response).logprobs
    assert entries
    assert [entry.model_dump() for entry in entries] == [e.model_dump() for e in told.content]
    assert {len(entry.top_logprobs) for entry in entries} == {3}
    own = part_of(respond(client, include=LOGPROBS)).logprobs
    assert own
    assert {len(entry.top_logprobs) for entry in own} == {0}


def test_diffusions_own_fields_reach_the_server(client: openai.OpenAI, demo: RunningServer) -> None:
    def passes(**extra: Any) -> int:
        before = demo.statistics().forward_passes
        respond(client, extra_body={"seed": 1, "ignore_eos": True} | extra)
        return demo.statistics().forward_passes - before

    assert passes(steps=24) == 24
    assert passes(steps=6, block_length=24) == 6
    assert passes(steps=6, block_length=24, cfg_scale=1.5) == 12
    assert passes(strategy={"type": "confidence_threshold", "threshold": 0.5}) < 24


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    accepted: dict[str, Any] = {
        "user": "someone",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "store": True,
        "metadata": {},
        "background": False,
        "conversation": None,
        "previous_response_id": None,
        "prompt": None,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_tool_calls": None,
        "truncation": "disabled",
        "reasoning": {"effort": "none", "summary": None},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "include": ["reasoning.encrypted_content"],
        "top_logprobs": 0,
        "stream_options": {"include_obfuscation": True},
        "extra_body": {"seed": 1, "n": 1, "a_field_of_tomorrow": {"x": 1}},
    }
    assert respond(client, **accepted).output_text == respond(client).output_text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"reasoning": "low"}, "reasoning"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"truncation": "auto"}, "truncation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"include": ["everything"]}, "include[0]"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": LOGPROBS, "top_logprobs": 21}, "top_logprobs"),
    ({"n": 2}, "n"),
    ({"diffusing": True}, "diffusing"),
    ({"return_trajectory": True}, "return_trajectory"),
    ({"best_of": 2}, "best_of"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"latency_budget_ms": 1.5}, "latency_budget_ms"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"metadata": {"a" * 65: "x"}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    # chat's names
    ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "x"}, "suffix"),
    # wrong inputs
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    (
        {
            "input": [
                {"role": "user", "content": "x"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "x"},
            ]
        },
        "input[1].type",
    ),
    ({"input": [{"type": "reasoning", "summary": [], "content": None}]}, "input[0].type"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
    ),
    # wrong types and ranges
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "many"}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"stream": "yes"}, "stream"),
    ({"instructions": 5}, "instructions"),
    ({"store": "no"}, "store"),
    # what the server refuses, under the names of this API
    ({"max_output_tokens": 1_000_000}, "max_output_tokens"),
    ({"steps": 500, "max_output_tokens": 4}, "steps"),
    ({"stop": ""}, "stop"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[str(f)[:70] for f, _ in REFUSED])
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/responses", json={"input": "Hello"} | fields)
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param.split(".")[0].split("[")[0] in error["message"]


def test_an_input_that_is_too_long_is_refused_by_name(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "word " * 5000}]
    for given in ("word " * 5000, long):
        reply = http.post("/v1/responses", json={"input": given})
        assert (reply.status_code, error_of(reply)["param"]) == (400, "input")


def test_a_refusal_is_the_clients_bad_request_error(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            respond(client, max_output_tokens=1_000_000, stream=stream)
        assert caught.value.param == "max_output_tokens"
        assert caught.value.message.count("max_output_tokens (1000000) exceeds") == 1
    with pytest.raises(openai.NotFoundError) as missing:
        respond(client, model="gpt-5")
    assert missing.value.code == "model_not_found"


def test_nothing_that_was_answered_can_be_asked_for_again(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    name = respond(client, store=True).id
    calls: list[Any] = [
        lambda: client.responses.retrieve(name),
        lambda: client.responses.delete(name),
        lambda: client.responses.cancel(name),
        lambda: list(client.responses.input_items.list(name)),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "not_found"
        assert "not stored" in caught.value.message
        assert name in caught.value.message
    for method, path, status in (
        ("GET", "/v1/responses", 405),
        ("PUT", f"/v1/responses/{name}", 405),
        ("POST", "/v1/responses/compact", 405),
        ("POST", f"/v1/responses/{name}/other", 404),
    ):
        reply = http.request(method, path)
        assert reply.status_code == status, path
        error_of(reply)


@pytest.fixture
def document(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


def test_the_reply_is_what_the_document_says(http: httpx.Client, document: dict[str, Any]) -> None:
    asked = {"input": "x", "max_output_tokens": 4}
    for fields in ({}, {"include": LOGPROBS, "top_logprobs": 1}, {"stop": "e"}):
        reply = http.post("/v1/responses", json=asked | fields)
        validator(document, "Response").validate(reply.json())
    validator(document, "ErrorReply").validate(http.get("/v1/responses/resp_1").json())


def test_what_the_document_forbids_is_refused(document: dict[str, Any]) -> None:
    request = validator(document, "ResponseRequest")
    permitted = {next(iter(f)) for f, _ in REFUSED if request.is_valid({"input": "Hello"} | f)}
    # They need the model's limits or two fields to be wrong.
    several = {"top_logprobs", "diffusing", "max_output_tokens", "steps", "stop", "text"}
    assert permitted <= several | {"tool_choice"}
    assert request.is_valid({"input": "Hello"})


def test_the_text_is_the_servers_own(client: openai.OpenAI, demo: RunningServer) -> None:
    spec = v1.GenerationSpec(
        chat=v1.ChatInput(messages=[v1.ChatMessage(role=v1.ROLE_USER, content=SAID)]),
        sampling=v1.SamplingParams(max_new_tokens=24, seed=1),
    )
    direct = demo.generation.Generate(v1.GenerateRequest(spec=spec))
    assert respond(client).output_text == direct.outputs[0].text
