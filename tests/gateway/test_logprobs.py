"""`logprobs` and `top_logprobs` in OpenAI's two shapes, whole and streamed."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest

from gateway import logprobs
from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_refusals import CHAT, TEXT, error_of
from vdiff_grpc import v1

FIELDS: dict[str, Any] = {
    "model": "demo",
    "prompt": "Once upon a time",
    "max_tokens": 16,
    "temperature": 0,
}
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a dog."}]
CHATTING: dict[str, Any] = {
    "model": "demo",
    "messages": MESSAGES,
    "max_tokens": 16,
    "temperature": 0,
}


def direct(demo: RunningServer, **sampling: Any) -> v1.Tokens:
    spec = v1.GenerationSpec(
        text=FIELDS["prompt"],
        sampling=v1.SamplingParams(max_new_tokens=16, temperature=0, **sampling),
    )
    return demo.generation.Generate(v1.GenerateRequest(spec=spec)).outputs[0].tokens


def test_a_completion_tells_each_token_and_the_most_likely_ones(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    choice = client.completions.create(**FIELDS, logprobs=3).choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.text_offset
    tokens = direct(demo, top_logprobs=3)
    assert "".join(told.tokens) == choice.text
    assert [math.exp(logprob) for logprob in told.token_logprobs] == pytest.approx(
        list(tokens.confidences), rel=1e-4
    )
    assert told.text_offset == list(tokens.text_offsets)
    for token, logprob, offset, top in zip(
        told.tokens, told.token_logprobs, told.text_offset, told.top_logprobs, strict=True
    ):
        assert choice.text[offset:].startswith(token)
        assert len(top) == 3, "at temperature 0 the token is one of them"
        assert top[token] == pytest.approx(logprob, abs=1e-3)
        assert max(top.values()) == pytest.approx(logprob, abs=1e-3)


def test_at_a_temperature_the_token_is_told_beside_the_most_likely(client: openai.OpenAI) -> None:
    fields = FIELDS | {"temperature": 2.0, "max_tokens": 32}
    told = client.completions.create(**fields, logprobs=1).choices[0].logprobs
    assert told is not None
    assert told.tokens
    assert told.top_logprobs
    assert {len(top) for top in told.top_logprobs} == {1, 2}
    assert all(token in top for token, top in zip(told.tokens, told.top_logprobs, strict=True))


def test_no_likely_tokens_but_the_tokens_own_probability(client: openai.OpenAI) -> None:
    told = client.completions.create(**FIELDS, logprobs=0).choices[0].logprobs
    assert told is not None
    assert told.token_logprobs
    assert told.top_logprobs == [
        {token: logprob}
        for token, logprob in zip(told.tokens or [], told.token_logprobs, strict=True)
    ]
    chat = client.chat.completions.create(**CHATTING, logprobs=True).choices[0].logprobs
    assert chat is not None
    assert chat.content
    assert all(entry.top_logprobs == [] and entry.logprob <= 0 for entry in chat.content)


def test_a_chat_tells_them_with_their_bytes(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CHATTING, logprobs=True, top_logprobs=4).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    data = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
    assert data.decode() == choice.message.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 4
        falling = [top.logprob for top in entry.top_logprobs]
        assert falling == sorted(falling, reverse=True)
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].bytes == entry.bytes


@pytest.mark.parametrize("strategy", ["fixed_schedule", "wino"])
def test_a_stream_tells_what_the_whole_answer_tells(client: openai.OpenAI, strategy: str) -> None:
    extra = {"extra_body": {"strategy": {"type": strategy}}}
    whole = client.chat.completions.create(**CHATTING, **extra, logprobs=True, top_logprobs=2)
    content = []
    for chunk in client.chat.completions.create(
        **CHATTING, **extra, logprobs=True, top_logprobs=2, stream=True
    ):
        if chunk.choices[0].logprobs is not None:
            content += chunk.choices[0].logprobs.content or []
    assert whole.choices[0].logprobs is not None
    assert content == whole.choices[0].logprobs.content

    told = client.completions.create(**FIELDS, **extra, logprobs=2).choices[0].logprobs
    assert told is not None
    columns: dict[str, list[Any]] = {name: [] for name in told.model_dump()}
    for piece in client.completions.create(**FIELDS, **extra, logprobs=2, stream=True):
        if piece.choices[0].logprobs is not None:
            for name, values in piece.choices[0].logprobs.model_dump().items():
                columns[name] += values
    assert columns == told.model_dump()


def test_without_being_asked_none_are_told(client: openai.OpenAI) -> None:
    for chunk in client.completions.create(**FIELDS, stream=True):
        assert chunk.choices[0].logprobs is None
    assert client.chat.completions.create(**CHATTING, logprobs=False).choices[0].logprobs is None


def test_replies_with_probabilities_are_what_the_document_says(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    completion = http.post("/v1/completions", json=TEXT | {"logprobs": 2})
    validator(document, "Completion").validate(completion.json())
    asked = CHAT | {"max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    validator(document, "ChatCompletion").validate(
        http.post("/v1/chat/completions", json=asked).json()
    )


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"logprobs": -1}, "logprobs"),
        ("/v1/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"logprobs": 1, "echo": True}, "logprobs"),
        ("/v1/chat/completions", {"logprobs": 2}, "logprobs"),
        ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    reply = http.post(path, json=(TEXT if path == "/v1/completions" else CHAT) | fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


def test_tokens_that_are_no_text_have_names_of_their_own() -> None:
    tokens = v1.Tokens(
        ids=[5, 6, 0],
        confidences=[0.5, 0.0, 1.0],
        token_bytes=[b"\xe2\x82", b"\xac", b""],
        text_offsets=[0, 1, 1],
        top_tokens=[
            v1.TopTokens(ids=[5, 7], logprobs=[-0.5, -1.0], token_bytes=[b"\xe2\x82", b"a"]),
            v1.TopTokens(ids=[8, 6], logprobs=[-0.1, -math.inf], token_bytes=[b"b", b"\xac"]),
            v1.TopTokens(ids=[0, 1], logprobs=[0.0, -9.0], token_bytes=[b"", b""]),
        ],
    )
    told = logprobs.of_completion(tokens)
    assert told.tokens == ["bytes:\\xe2\\x82", "bytes:\\xac", "token_id:0"]
    assert told.token_logprobs == [-0.693147, -9999.0, 0.0]
    assert told.top_logprobs[1] == {"b": -0.1, "bytes:\\xac": -9999.0}
    assert set(told.top_logprobs[2]) == {"token_id:0", "token_id:1"}
    chat = logprobs.of_chat(tokens)
    assert [entry.bytes for entry in chat.content] == [[0xE2, 0x82], [0xAC], []]
    assert chat.content[0].token == "\N{REPLACEMENT CHARACTER}"
