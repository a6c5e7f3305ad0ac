"""POST /v1/chat/completions, as the openai client sees it."""

from __future__ import annotations

from typing import Any

import openai

from tests.conftest import RunningServer
from vdiff_grpc import v1

MESSAGES: list[Any] = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Tell me a story about a dog."},
]


def chat(client: openai.OpenAI, **fields: Any) -> openai.types.chat.ChatCompletion:
    given = {"model": "demo", "messages": MESSAGES, "max_completion_tokens": 24, "seed": 1}
    return client.chat.completions.create(**(given | fields))  # type: ignore[no-any-return]


def test_an_answer_has_a_role_content_and_usage(client: openai.OpenAI, demo: RunningServer) -> None:
    reply = chat(client)
    direct = demo.generation.Generate(
        v1.GenerateRequest(
            spec=v1.GenerationSpec(
                chat=v1.ChatInput(
                    messages=[
                        v1.ChatMessage(role=v1.ROLE_SYSTEM, content=MESSAGES[0]["content"]),
                        v1.ChatMessage(role=v1.ROLE_USER, content=MESSAGES[1]["content"]),
                    ]
                ),
                sampling=v1.SamplingParams(max_new_tokens=24, seed=1),
            )
        )
    )
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", "demo")
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", direct.outputs[0].text)
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == direct.usage.prompt_tokens
    assert reply.usage.completion_tokens == direct.usage.completion_tokens


async def test_the_asynchronous_client_gets_the_same(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    reply = await aclient.chat.completions.create(
        model="demo", messages=MESSAGES, max_completion_tokens=24, seed=1
    )
    assert reply.choices == chat(client).choices


def test_text_parts_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": " about a dog."}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert chat(client, messages=messages).choices == chat(client).choices


def test_developer_is_the_newer_name_of_system(client: openai.OpenAI) -> None:
    messages = [{**MESSAGES[0], "role": "developer"}, MESSAGES[1]]
    assert chat(client, messages=messages).choices == chat(client).choices


def test_an_earlier_answer_is_part_of_the_prompt(client: openai.OpenAI) -> None:
    more = [*MESSAGES, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    longer, shorter = chat(client, messages=more).usage, chat(client).usage
    assert longer is not None
    assert shorter is not None
    assert longer.prompt_tokens > shorter.prompt_tokens


def test_max_tokens_is_the_older_name_of_max_completion_tokens(client: openai.OpenAI) -> None:
    old = chat(client, max_completion_tokens=openai.NOT_GIVEN, max_tokens=24)
    assert old.choices == chat(client).choices


def test_n_answers_are_numbered(client: openai.OpenAI) -> None:
    choices = chat(client, n=3, temperature=1.0).choices
    assert [choice.index for choice in choices] == [0, 1, 2]


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    accepted: dict[str, Any] = {
        "user": "someone",
        "store": True,
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stream_options": {"include_usage": True},
        "extra_body": {"a_field_of_tomorrow": {"x": 1}},
    }
    assert chat(client, **accepted).choices == chat(client).choices
