"""Server-sent events, through the openai client and as bytes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from gateway import replies
from gateway.convert import parse_completion
from gateway.openai_replies import ENCODER
from tests.conftest import RunningServer
from vdiff_grpc import v1

PROMPT = "Once upon a time"
FIELDS: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "seed": 1}
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Tell me a story about a dog."}],
    "max_completion_tokens": 24,
    "seed": 1,
}


def test_the_deltas_of_a_completion_are_its_text(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(**FIELDS, stream=True))
    whole = client.completions.create(**FIELDS)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) > 2


def test_a_chat_stream_begins_with_the_role(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    whole = client.chat.completions.create(**CHAT)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


async def test_the_asynchronous_client_streams_the_same(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    stream = await aclient.chat.completions.create(**CHAT, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == client.chat.completions.create(**CHAT).choices[0].message.content


@pytest.mark.parametrize("path", ["completions", "chat"])
def test_include_usage_adds_a_last_chunk_without_choices(client: openai.OpenAI, path: str) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks: list[Any]
    if path == "chat":
        chunks = list(client.chat.completions.create(**CHAT, **options))
        usage: Any = client.chat.completions.create(**CHAT).usage
    else:
        chunks = list(client.completions.create(**FIELDS, **options))
        usage = client.completions.create(**FIELDS).usage
    assert chunks[-1].choices == []
    assert chunks[-1].usage.model_dump() == usage.model_dump()
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])


def test_several_prompts_and_answers_keep_their_indices(client: openai.OpenAI) -> None:
    fields = FIELDS | {"prompt": [PROMPT, "The dog"], "n": 2, "temperature": 1.0, "echo": True}
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in client.completions.create(**fields, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    whole = client.completions.create(**fields).choices
    assert texts == {choice.index: choice.text for choice in whole}
    assert reasons == {choice.index: choice.finish_reason for choice in whole}


def test_the_bytes_are_events_and_end_with_done(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", json=FIELDS | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "text_completion"
        assert "usage" not in chunk
        assert "diffusion" not in chunk


@pytest.mark.parametrize("path", ["completions", "chat"])
def test_applying_the_diffusing_chunks_gives_the_final_canvas(
    client: openai.OpenAI, demo: RunningServer, path: str
) -> None:
    extra = {"diffusing": True, "ignore_eos": True, "block_length": 24}
    chunks: list[Any]
    if path == "chat":
        chunks = list(client.chat.completions.create(**CHAT, n=2, stream=True, extra_body=extra))
        spec = v1.GenerationSpec(
            chat=v1.ChatInput(
                messages=[v1.ChatMessage(role=v1.ROLE_USER, content=CHAT["messages"][0]["content"])]
            )
        )
    else:
        chunks = list(client.completions.create(**FIELDS, n=2, stream=True, extra_body=extra))
        spec = v1.GenerationSpec(text=PROMPT)
    spec.sampling.MergeFrom(v1.SamplingParams(max_new_tokens=24, seed=1, n=2, ignore_eos=True))
    spec.diffusion.block_length = 24
    direct = demo.generation.Generate(v1.GenerateRequest(spec=spec))

    canvases: dict[int, list[int]] = {}
    prompts: dict[int, int] = {}
    shown: dict[int, list[int]] = {0: [], 1: []}
    ends: dict[int, Any] = {}
    for chunk in chunks:
        # openai-python keeps what it does not know.
        diffusion = getattr(chunk, "diffusion", None)
        if diffusion is None:
            continue
        (choice,) = chunk.choices
        assert choice.index == diffusion["index"]
        match diffusion["kind"]:
            case "start":
                canvases[choice.index] = diffusion["token_ids"]
                assert [span["kind"] for span in diffusion["spans"]] == ["prompt", "hole"]
                prompts[choice.index] = diffusion["spans"][0]["length"]
                holes = diffusion["token_ids"][prompts[choice.index] :]
                assert holes == [diffusion["mask_token_id"]] * 24
                texts = diffusion["tokens"]
                assert len(texts) == len(diffusion["token_ids"])
                assert all(texts[: prompts[choice.index]])
                assert not any(texts[prompts[choice.index] :])
            case "unmask" | "revise" | "remask":
                columns = [diffusion[k] for k in ("token_ids", "tokens", "confidences")]
                assert {len(column) for column in columns} == {len(diffusion["positions"])}
                shown[choice.index] += diffusion["positions"]
                for position, token in zip(
                    diffusion["positions"], diffusion["token_ids"], strict=True
                ):
                    canvases[choice.index][position] = token
            case "snapshot":
                canvases[choice.index] = diffusion["token_ids"]
            case "end":
                ends[choice.index] = diffusion
    for output in direct.outputs:
        generated = canvases[output.index][prompts[output.index] :]
        assert generated == list(output.tokens.ids)
        assert ends[output.index]["seed"] == output.end.seed
        assert ends[output.index]["forward_passes"] == output.end.forward_passes
    # A diffusion model does not write left to right.
    assert any(positions != sorted(positions) for positions in shown.values())


def test_a_snapshot_tells_its_tokens_texts() -> None:
    job = parse_completion(json.dumps(FIELDS | {"stream": True, "diffusing": True}).encode())
    stream = replies.CompletionStream(job)
    stream.start([v1.Started(resolved={"sampling": {"n": 1}})])
    snapshot = v1.CanvasSnapshot(
        step=3, forward_passes=4, token_ids=[7, 2], confidences=[0.25, 0], texts=[" a", ""]
    )
    (chunk,) = stream.event(0, v1.StreamGenerateResponse(snapshot=snapshot))
    assert json.loads(ENCODER.encode(chunk))["diffusion"] == {
        "kind": "snapshot",
        "index": 0,
        "step": 3,
        "block": 0,
        "forward_passes": 4,
        "positions": [0, 1],
        "token_ids": [7, 2],
        "confidences": [0.25, 0.0],
        "tokens": [" a", ""],
    }


def test_the_steps_do_not_disturb_the_text(client: openai.OpenAI) -> None:
    extra = {"diffusing": True}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, extra_body=extra))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == client.chat.completions.create(**CHAT).choices[0].message.content


def test_a_refusal_is_a_status_even_when_a_stream_was_asked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**FIELDS | {"n": 100_000}, stream=True)
    assert caught.value.param == "n"
