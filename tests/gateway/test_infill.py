"""`infill` of /v1/completions: documents with several holes."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_refusals import error_of
from vdiff_grpc import v1
from vdiff_grpc.client import choice, hole, regex
from vdiff_grpc.client.requests import build_spec

DOCUMENT: list[Any] = [
    "Tom had a",
    {"max_length": 4},
    " ball. He",
    {"length": 4},
    " with it and went home.",
]
TEMPLATE = [
    "Tom had a",
    hole(max_length=4),
    " ball. He",
    hole(4),
    " with it and went home.",
]
FIELDS: dict[str, Any] = {"model": "demo", "prompt": "", "seed": 3, "temperature": 1.0}
SPEC: dict[str, Any] = {"seed": 3, "temperature": 1.0}


def test_all_holes_are_filled_as_the_server_fills_them(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    reply = client.completions.create(
        **FIELDS, n=2, logprobs=0, extra_body={"infill": DOCUMENT, "diffusing": True}
    )
    spec = build_spec(infill=TEMPLATE, n=2, **SPEC)
    direct = demo.generation.Generate(v1.GenerateRequest(spec=spec))
    for got, output in zip(reply.choices, direct.outputs, strict=True):
        assert got.model_extra is not None
        assert got.model_extra["hole_texts"] == list(output.hole_texts)
        assert got.text == output.text == "".join(output.hole_texts)
        assert got.logprobs is not None
        assert got.logprobs.text_offset == list(output.tokens.text_offsets)
        assert got.model_extra["diffusion"]["positions"] == list(output.tokens.positions)
        assert "hole_index" not in got.model_extra
    assert len(direct.outputs[0].hole_texts) == 2
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == direct.usage.prompt_tokens
    assert reply.usage.completion_tokens == direct.usage.completion_tokens


def test_a_stream_tells_which_hole_a_text_belongs_to(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    fields = FIELDS | {"n": 2, "infill": DOCUMENT}
    whole = http.post("/v1/completions", json=fields).json()
    reply = http.post("/v1/completions", json=fields | {"stream": True})
    events = [line[6:] for line in reply.iter_lines() if line.startswith("data: {")]
    texts = [["", ""], ["", ""]]
    document = http.get("/openapi.json").json()
    for chunk in map(json.loads, events):
        validator(document, "CompletionChunk").validate(chunk)
        (one,) = chunk["choices"]
        if one["text"]:
            texts[one["index"]][one["hole_index"]] += one["text"]
    assert texts == [one["hole_texts"] for one in whole["choices"]]
    validator(document, "Completion").validate(whole)
    plain = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).json()
    assert not {"hole_texts", "hole_index"} & plain["choices"][0].keys()


def test_token_ids_and_a_constraint_of_each_hole_are_taken(
    http: httpx.Client, demo: RunningServer
) -> None:
    ids = demo.model.CountTokens(v1.CountTokensRequest(text="He had")).token_ids
    segments = [
        list(ids),
        {"length": 2, "guided_choice": [" red", " green"]},
        " toys and",
        {"length": 3, "guided_regex": " [0-9]+"},
        " cats.",
    ]
    fields = {name: value for name, value in FIELDS.items() if name != "prompt"}  # may be absent
    reply = http.post("/v1/completions", json=fields | {"infill": segments}).json()
    colour, number = reply["choices"][0]["hole_texts"]
    assert colour in (" red", " green")
    assert re.fullmatch(" [0-9]+", number)
    template = [
        list(ids),
        hole(2, constraint=choice(" red", " green")),
        " toys and",
        hole(3, constraint=regex(" [0-9]+")),
        " cats.",
    ]
    spec = build_spec(infill=template, **SPEC)
    direct = demo.generation.Generate(v1.GenerateRequest(spec=spec)).outputs[0]
    assert [colour, number] == list(direct.hole_texts)


SCHEMA = {
    "type": "json_schema",
    "json_schema": {"schema": {"items": {"$dynamicRef": "#x"}, "type": "array"}},
}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": "a"}, "prompt", "cannot be set with a prompt"),
        ({"prompt": ["a", "b"]}, "prompt", "cannot be set with a prompt"),
        ({"echo": True}, "echo", "cannot be used with infill"),
        ({"max_tokens": 4}, "max_tokens", "cannot be set with infill"),
        ({"suffix": "a"}, "suffix", ""),
        ({"min_tokens": 2}, "min_tokens", "cannot be set with infill"),
        ({"guided_regex": "a"}, "guided_regex", "cannot be set with infill"),
        ({"stop": "a"}, "stop", ""),
        ({"infill": []}, "infill", "no hole to fill"),
        ({"infill": ["a"]}, "infill", "no hole to fill"),
        ({"infill": ["a", {"length": 0}]}, "infill[1].length", ""),
        ({"infill": ["a", {}]}, "infill[1].length", "hole length (0) is not in [1, "),
        ({"infill": ["a", {"min_length": 2}]}, "infill[1].min_length", "needs max_length"),
        (
            {"infill": ["a", {"length": 2, "max_length": 3}]},
            "infill[1].length",
            "cannot be set with",
        ),
        ({"infill": ["a", {"length": 9999}]}, "infill[1].length", "(9999) is not in [1, "),
        ({"infill": [[1, 999999], {"length": 2}]}, "infill[0][1]", "not in the vocabulary"),
        ({"infill": [{"length": 2}, "<|mask|>"]}, "infill[1]", ""),
        ({"infill": [["a"], {"length": 2}]}, "infill[0][0]", ""),
        ({"infill": [{"length": 2, "guided_regex": "("}]}, "infill[0].guided_regex", "regex"),
        (
            {"infill": ["a", {"length": 2, "guided_regex": "a", "guided_choice": ["b"]}]},
            "infill[1].guided_choice",
            "cannot be set with infill[1].guided_regex",
        ),
        (
            {"infill": ["a", {"length": 2, "response_format": SCHEMA}]},
            "infill[1].response_format.json_schema.schema.items.$dynamicRef",
            "$dynamicRef is not supported",
        ),
    ],
)
def test_what_is_no_document_is_refused_by_the_clients_name(
    http: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    reply = http.post("/v1/completions", json=FIELDS | {"infill": DOCUMENT} | fields)
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert error["param"] == param
    assert words in error["message"]
