"""`best_of`, `diffusing` without a stream and `return_trajectory`, through OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_logprobs import CHATTING, FIELDS
from vdiff_grpc import v1

SAMPLED = FIELDS | {"temperature": 1.0, "seed": 4}


def asked(**sampling: Any) -> v1.GenerationSpec:
    params = v1.SamplingParams(max_new_tokens=16, temperature=1.0, seed=4, **sampling)
    return v1.GenerationSpec(text=FIELDS["prompt"], sampling=params)


def test_the_best_completions_come_first(client: openai.OpenAI, demo: RunningServer) -> None:
    reply = client.completions.create(
        **SAMPLED, n=2, best_of=5, extra_body={"diffusing": True}, logprobs=1
    )
    direct = demo.generation.Generate(v1.GenerateRequest(spec=asked(n=2, best_of=5)))
    assert [c.text for c in reply.choices] == [output.text for output in direct.outputs]
    assert [c.index for c in reply.choices] == [0, 1]
    told = [choice.model_extra["diffusion"] for choice in reply.choices if choice.model_extra]
    scores = [output.end.score for output in direct.outputs]
    assert [one["score"] for one in told] == pytest.approx(scores, abs=1e-6)
    assert [one["seed"] for one in told] == [output.end.seed for output in direct.outputs]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == direct.usage.completion_tokens
    assert reply.usage.completion_tokens > sum(len(o.tokens.ids) for o in direct.outputs)


def test_best_of_as_many_as_are_wanted_chooses_nothing_and_costs_nothing(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    before = demo.statistics().forward_passes
    plain = client.completions.create(**SAMPLED, n=3)
    between = demo.statistics().forward_passes
    same = client.completions.create(**SAMPLED, n=3, best_of=3, stream=False)
    assert [c.text for c in same.choices] == [c.text for c in plain.choices]
    assert demo.statistics().forward_passes - between == between - before
    chunks = list(client.completions.create(**SAMPLED, best_of=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text


def test_the_servers_limit_is_told_by_the_clients_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**SAMPLED, best_of=9)
    assert caught.value.param == "best_of"
    assert "best_of (9) exceeds the server's limit (8)" in str(caught.value)


@pytest.mark.parametrize("path", ["chat/completions", "fim/completions"])
def test_only_completions_have_best_of(http: httpx.Client, path: str) -> None:
    fields = CHATTING if path.startswith("chat") else {"prompt": "Once"}
    reply = http.post(f"/v1/{path}", json=fields | {"best_of": 2})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "best_of"


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("completions", "Completion"),
        ("chat/completions", "ChatCompletion"),
        ("fim/completions", "FimCompletion"),
    ],
)
def test_a_choice_tells_the_step_of_each_token_and_every_change(
    http: httpx.Client, path: str, schema: str
) -> None:
    document = http.get("/openapi.json").json()
    fields: dict[str, Any] = {"max_tokens": 12, "steps": 6, "n": 2, "ignore_eos": True}
    fields |= {"block_length": 12, "strategy": {"type": "remdm", "eta": 0.3}, "seed": 1}
    chats = path.startswith("chat")
    fields |= {"messages": CHATTING["messages"]} if chats else {"prompt": "Tom had"}

    def ask(**more: Any) -> Any:
        reply = http.post(f"/v1/{path}", json=fields | more)
        assert reply.status_code == 200, reply.text
        validator(document, schema).validate(reply.json())
        return reply.json()["choices"]

    assert not any("diffusion" in choice for choice in ask())
    steps = [choice["diffusion"] for choice in ask(diffusing=True)]
    whole = [choice["diffusion"] for choice in ask(return_trajectory=True)]
    assert [
        one | {"trajectory": two["trajectory"]} for one, two in zip(steps, whole, strict=True)
    ] == whole
    for index, one in enumerate(whole):
        filled: dict[int, tuple[int, int, float]] = {}
        for change in one["trajectory"]:
            assert change["index"] == index
            columns = ("positions", "token_ids", "confidences")
            for position, token, sure in zip(*(change[c] for c in columns), strict=True):
                filled[position] = (token, change["step"], sure)
        assert any(change["kind"] == "remask" for change in one["trajectory"])
        columns = ("positions", "token_ids", "steps", "confidences")
        told = {p: (t, s, c) for p, t, s, c in zip(*(one[c] for c in columns), strict=True)}
        assert told == filled
        assert one["forward_passes"] >= 6


def test_a_trajectory_too_large_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="demo",
            prompt="Tom",
            max_tokens=200,
            n=8,
            extra_body={
                "return_trajectory": True,
                "strategy": {"type": "editing", "max_post_steps": 1024},
            },
        )
    assert caught.value.param == "return_trajectory"
    assert "(131072)" in str(caught.value)


def test_steps_that_were_hurried_are_told(http: httpx.Client) -> None:
    asked = {"prompt": "x", "max_tokens": 24, "seed": 1, "steps": 24, "ignore_eos": True}
    hasty = asked | {"block_length": 8, "latency_budget_ms": 1}

    def diffusions(path: str = "completions", **body: Any) -> list[dict[str, Any]]:
        reply = http.post(f"/v1/{path}", json={"stream": True, "diffusing": True} | body)
        lines = [line[6:] for line in reply.raise_for_status().iter_lines() if "diffusion" in line]
        return [json.loads(line)["diffusion"] for line in lines if line.startswith("{")]

    document = http.get("/openapi.json").json()
    respond = {"input": "x", "max_output_tokens": 24}
    respond |= {key: hasty[key] for key in ("ignore_eos", "block_length", "latency_budget_ms")}
    for told in (diffusions(**hasty), diffusions("responses", **respond, steps=24)):
        start, *steps, end = told
        assert [step.get("hurried") for step in steps] == [True] * 3
        assert ("hurried" in start, end["hurried"]) == (False, True)
        for one in told:
            validator(document, "Diffusion" + one["kind"].capitalize()).validate(one)
    assert not any("hurried" in one for one in diffusions(**asked))
    whole = http.post("/v1/completions", json=hasty | {"return_trajectory": True}).json()
    told = whole["choices"][0]["diffusion"]
    assert told["hurried"]
    assert [step["hurried"] for step in told["trajectory"]] == [True] * 3
