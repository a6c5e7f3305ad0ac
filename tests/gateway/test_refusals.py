"""What cannot be honoured is 400, in OpenAI's shape, with the field's name as `param`."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer
from vdiff_grpc.client import STRATEGIES

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
TEXT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 4}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def error_of(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"response_format": {"type": "grammar"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": "text"}, "response_format"),
    ({"latency_budget_ms": 0}, "latency_budget_ms"),
    ({"latency_budget_ms": 100, "strategy": {"type": "wino"}}, "latency_budget_ms"),
    ({"stream": True, "return_trajectory": True}, "return_trajectory"),
    # wrong types and ranges
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"n": 0}, "n"),
    ({"seed": 1.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"model": 1}, "model"),
    ({"steps": 0}, "steps"),
    ({"block_length": "all"}, "block_length"),
    ({"cfg_scale": 17}, "cfg_scale"),
    ({"priority": 101}, "priority"),
    ({"strategy": "confidence_threshold"}, "strategy"),
    ({"strategy": {}}, "strategy.type"),
    ({"strategy": {"type": "greedy"}}, "strategy.type"),
    ({"strategy": {"type": "fixed_schedule", "threshold": 0.5}}, "strategy.threshold"),
    ({"strategy": {"type": "fixed_schedule", "remasking": "none"}}, "strategy.remasking"),
    ({"strategy": {"type": "confidence_threshold", "threshold": 0}}, "strategy.threshold"),
    # what the server refuses, under OpenAI's names
    ({"max_tokens": 1_000_000}, "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": 1_000_000}, "max_completion_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"n": 1000}, "n"),
    ({"top_k": 2**31}, "top_k"),
    ({"steps": 500, "max_tokens": 4}, "steps"),
    ({"stop": ""}, "stop"),
    ({"steps": 2, "strategy": {"type": "confidence_threshold"}}, "steps"),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(("fields", "param"), BOTH, ids=[str(fields) for fields, _ in BOTH])
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    reply = http.post(path, json=(TEXT if path == "/v1/completions" else CHAT) | fields)
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param.split(".")[0].split("[")[0] in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ["x", 1]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": ["x"] * 2049}, "prompt"),
        ({"prompt": [1, 2.5]}, "prompt[1]"),
        ({"prompt": [[1, -2]]}, "prompt[0][1]"),
        ({"prompt": [1, 2**31]}, "prompt[1]"),
        ({"prompt": [[1], [1, 2**31]]}, "prompt[1][1]"),
        ({"prompt": [1, 2], "echo": True}, "echo"),
        ({"prompt": [1, 2], "suffix": "x"}, "suffix"),
        ({"suffix": 1}, "suffix"),
        ({"echo": "yes"}, "echo"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_completions_refuse_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/completions", json=TEXT | fields)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [TOOL]}, "tool_choice"),  # the template has none
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [TOOL]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": 1, "content": "x"}]},
            "messages[1].role",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]},
            "messages[0].content[1].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].type",
        ),
    ],
    ids=str,
)
def test_chat_refuses_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/chat/completions", json=CHAT | fields)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"] == param


def test_the_message_has_field_value_and_what_was_expected(http: httpx.Client) -> None:
    def message(**fields: Any) -> str:
        text: str = error_of(http.post("/v1/completions", json=TEXT | fields))["message"]
        return text

    assert message(max_tokens="many") == 'max_tokens ("many"): expected integer or null, got string'
    assert message(temperature=3) == "temperature (3): expected number <= 2.0"
    assert message(strategy={"type": "greedy"}) == (
        'strategy.type ("greedy"): expected one of ' + ", ".join(STRATEGIES)
    )
    assert message(max_tokens=None, max_completion_tokens=99999).startswith(
        "max_completion_tokens (99999) exceeds"
    )
    assert len(message(max_tokens="x" * 10_000)) < 200


def test_a_required_field_is_asked_for(http: httpx.Client) -> None:
    for path, param in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")):
        error = error_of(http.post(path, json={}))
        assert (error["param"], error["message"]) == (param, f"{param} is required")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"prompt=x",
        b"[]",
        b"null",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"max_tokens": "a", ',
        b'{"logit_bias": ' + b"[" * 100_000,
        b'{"prompt": ' + b"[" * 100_000,
    ],
    ids=lambda body: str(body[:20]),
)
def test_a_malformed_body_is_400(http: httpx.Client, body: bytes) -> None:
    reply = http.post("/v1/completions", content=body)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["type"] == "invalid_request_error"


def test_refusals_are_the_clients_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "custom", "custom": {"name": "f"}}],
        )
    assert caught.value.param == "tools[0].type"
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.type == "invalid_request_error"


def test_a_list_with_one_refused_prompt_is_refused_whole(
    http: httpx.Client, demo: RunningServer
) -> None:
    finished = demo.statistics().requests_finished
    reply = http.post("/v1/completions", json=TEXT | {"prompt": [[5, 6], [5, 2**31]]})
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, "prompt[1][1]")
    # The bystander: what comes next is served as ever.
    assert http.post("/v1/completions", json=TEXT).status_code == 200
    assert demo.statistics().requests_finished <= finished + 2
