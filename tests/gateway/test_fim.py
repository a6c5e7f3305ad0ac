"""POST /v1/fim/completions: the answers of completions, for Mistral's clients and Inception's."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_refusals import BOTH, error_of

FIELDS: dict[str, Any] = {
    "model": "demo",
    "prompt": "Once upon a time there was a",
    "suffix": " who lived in a big forest.",
    "max_tokens": 8,
    "seed": 1,
}


def fim(http: httpx.Client, **fields: Any) -> Any:
    reply = http.post("/v1/fim/completions", json=FIELDS | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    reply = http.post("/v1/fim/completions", json=FIELDS | fields | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def completion(http: httpx.Client, **fields: Any) -> Any:
    return http.post("/v1/completions", json=FIELDS | fields).json()


@pytest.mark.parametrize("suffix", [FIELDS["suffix"], None])
def test_the_gap_is_filled_as_by_completions(http: httpx.Client, suffix: str | None) -> None:
    reply = fim(http, suffix=suffix)
    other = completion(http, suffix=suffix)
    (choice,) = reply["choices"]
    assert choice["text"] == other["choices"][0]["text"]
    assert choice["message"] == {"role": "assistant", "content": choice["text"], "refusal": None}
    assert choice["finish_reason"] == other["choices"][0]["finish_reason"]
    assert reply["usage"] == other["usage"]
    assert (reply["object"], reply["model"]) == ("chat.completion", "demo")


def test_a_stream_has_each_delta_under_both_names(http: httpx.Client) -> None:
    whole = fim(http, n=2)["choices"]
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in stream(http, n=2):
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        assert choice["text"] == choice["delta"].get("content", "")
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {choice["index"]: choice["text"] for choice in whole}
    assert reasons == {choice["index"]: choice["finish_reason"] for choice in whole}
    assert all(texts.values())


def test_usage_steps_and_probabilities_come_as_in_chat(http: httpx.Client) -> None:
    asked = {"logprobs": True, "top_logprobs": 2}
    chunks = stream(http, diffusing=True, stream_options={"include_usage": True}, **asked)
    whole = fim(http, **asked)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    kinds = [chunk["diffusion"]["kind"] for chunk in chunks if "diffusion" in chunk]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert "unmask" in kinds
    start = next(chunk["diffusion"] for chunk in chunks if "diffusion" in chunk)
    assert [span["kind"] for span in start["spans"]] == ["prompt", "hole", "frozen"]
    told = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert told
    assert told == whole["choices"][0]["logprobs"]["content"]


def test_min_tokens_leaves_the_gaps_length_to_be_chosen(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    reply = fim(http, min_tokens=2, max_tokens=12)
    given = {"model": "demo", "prompt": FIELDS["prompt"], "suffix": FIELDS["suffix"], "seed": 1}
    other = client.completions.create(**given, max_tokens=12, extra_body={"min_tokens": 2})
    assert reply["choices"][0]["text"] == other.choices[0].text
    assert other.usage is not None
    length = other.usage.completion_tokens
    assert 2 <= length <= 12
    fixed = client.completions.create(**given, max_tokens=length)
    assert fixed.choices[0].text == other.choices[0].text
    assert fixed.usage == other.usage
    chunks = stream(http, min_tokens=2, max_tokens=12, diffusing=True)
    start = next(chunk["diffusion"] for chunk in chunks if "diffusion" in chunk)
    assert [span["kind"] for span in start["spans"]] == ["prompt", "hole", "frozen"]
    assert start["spans"][1]["length"] == length
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == other.choices[0].text


def test_a_gap_of_a_length_to_be_chosen_is_held_to_a_constraint(client: openai.OpenAI) -> None:
    given = {"model": "demo", "prompt": FIELDS["prompt"], "suffix": FIELDS["suffix"], "seed": 1}
    form = "[0-9]{1,3} (?:cats|dogs)"
    extra: dict[str, Any] = {"min_tokens": 1, "guided_regex": form}
    reply = client.completions.create(**given, max_tokens=12, extra_body=extra)
    assert re.fullmatch(form, reply.choices[0].text)
    extra = {"min_tokens": 1, "guided_choice": ["a very very very long way to go"]}
    with pytest.raises(openai.BadRequestError, match="shortest answer has") as caught:
        client.completions.create(**given, max_tokens=3, extra_body=extra)
    assert caught.value.param == "guided_choice"


def test_a_min_tokens_of_0_says_nothing(http: httpx.Client) -> None:
    assert fim(http, min_tokens=0)["choices"] == fim(http)["choices"]
    assert fim(http)["usage"]["completion_tokens"] == 8


def test_random_seed_is_mistrals_name_of_seed(http: httpx.Client) -> None:
    def text(**fields: Any) -> str:
        answer: str = fim(http, **{"seed": None, "temperature": 2.0, "max_tokens": 24} | fields)[
            "choices"
        ][0]["text"]
        return answer

    assert text(random_seed=5) == text(seed=5) == text(seed=5, random_seed=5)
    assert len({text(random_seed=seed) for seed in (5, 6, 7)}) > 1


def test_stop_and_diffusions_own_fields_reach_the_server(
    http: httpx.Client, demo: RunningServer
) -> None:
    before = demo.statistics().forward_passes
    strategy = {"type": "confidence_threshold", "threshold": 0.1}
    whole = fim(http, strategy=strategy, block_length=8, ignore_eos=True)
    assert demo.statistics().forward_passes - before < 8
    text = whole["choices"][0]["text"]
    cut = fim(http, strategy=strategy, block_length=8, ignore_eos=True, stop=[text[4:7]])
    assert cut["choices"][0]["text"] == text[: text.index(text[4:7])]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *BOTH,
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [5, 6]}, "prompt"),
        ({"suffix": 1}, "suffix"),
        ({"min_tokens": 3, "suffix": None}, "min_tokens"),
        ({"min_tokens": 3, "max_tokens": None}, "min_tokens"),
        ({"min_tokens": 9}, "min_tokens"),  # and max_tokens is 8
        ({"min_tokens": 3, "max_tokens": 5000}, "max_tokens"),
        ({"min_tokens": 3, "suffix": "<|mask|>"}, "suffix"),
        ({"min_tokens": 3, "prompt": "<|mask|>"}, "prompt"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 3, "hole_lengths": "native"}, "hole_lengths"),
        ({"hole_lengths": "confidence"}, "hole_lengths"),  # max_tokens is the length
        ({"min_tokens": 3, "hole_lengths": "other"}, "hole_lengths"),
        ({"random_seed": "x"}, "random_seed"),
        ({"random_seed": 2}, "random_seed"),  # and seed is 1
        ({"logprobs": 2}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/fim/completions", json=FIELDS | fields)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"] == param


def test_what_mistrals_clients_send_by_default_is_accepted(http: httpx.Client) -> None:
    sent = {"temperature": 0.3, "top_p": 1, "stream": False, "min_tokens": None, "stop": None}
    sent |= {"random_seed": None, "metadata": None}
    assert fim(http, **sent)["choices"][0]["text"]


def test_replies_are_what_the_document_says(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    whole = validator(document, "FimCompletion")
    whole.validate(fim(http, logprobs=True))
    chunks = validator(document, "FimChunk")
    for chunk in stream(http, diffusing=True, stream_options={"include_usage": True}):
        chunks.validate(chunk)
    assert not chunks.is_valid(chunk | {"choices": [{"index": 0, "delta": {}}]}), "no text"
    operation = document["paths"]["/v1/fim/completions"]["post"]
    assert "Mistral" in operation["description"]
