"""What the OpenAPI document says that the types do not: in words, and by examples, which tests send."""

from __future__ import annotations

from typing import Any

Examples = dict[str, dict[str, Any]]

FIM = """\
Each choice has its text twice: as chat has it (`message.content`, streamed `delta.content`), which
Mistral's clients read, and as completions have it (`text`), which Inception's read. `random_seed` is
Mistral's name of `seed`. The answer is that of `/v1/completions` with the same prompt and suffix.

"""

RESPONSES = """\
Nothing is stored: a conversation goes into `input`, earlier answers included, and `store` of the
reply is false. Text and functions only: no built-in tools, no reasoning. The answer is that of
`/v1/chat/completions` with `instructions` as the first message. It is `incomplete` when it filled
all of `max_output_tokens`, or was ended by its time with `partial_on_deadline`.

With `stream` the answer is server-sent events, each with its type as `event: ` and a
`sequence_number`: `response.created`, `response.in_progress`, `response.output_item.added`,
`response.content_part.added`, a `response.output_text.delta` whenever there is text that can no
longer change, `response.output_text.done`, `response.content_part.done`,
`response.output_item.done`; for a call of a tool `response.output_item.added`,
`response.function_call_arguments.delta` and `.done`, `response.output_item.done`; and last `response.completed` or `response.incomplete` with the token
counts. With `diffusing` there are also `response.output_text.delta` whose `delta` is empty and whose
`diffusion` holds what it holds in the chunks of `/v1/chat/completions`; the clients' raw streams
keep it (the helper `responses.stream()` of openai-python passes over it). An error after the stream
has begun is an event `error`, then `response.failed`.
"""


def complete(components: dict[str, Any]) -> None:
    """Says of each object what it must have, by its type; others are refused."""
    for name, field in (
        ("InputPart", "text"),
        ("ResultPart", "text"),
        ("ContentPart", "text"),
        ("Tool", "function"),
        ("FunctionChoice", "function"),
        ("MessageCall", "function"),
        ("FunctionTool", "name"),
        ("FlatChoice", "name"),
    ):
        components[name]["required"].append(field)
    item = components["InputItem"]
    item["properties"]["content"]["anyOf"].remove({"type": "null"})
    item["anyOf"] = [
        {"required": ["role", "content"], "properties": {"type": {"enum": ["message", None]}}},
        _of_type("function_call", "call_id", "name", "arguments"),
        _of_type("function_call_output", "call_id", "output"),
    ]


def _of_type(name: str, *fields: str) -> dict[str, Any]:
    return {"required": ["type", *fields], "properties": {"type": {"const": name}}}


COMPLETION_EXAMPLES: Examples = {
    "text": {
        "summary": "Continue a text",
        "value": {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0},
    },
    "infill": {
        "summary": "Fill the gap between prompt and suffix",
        "value": {
            "prompt": "Once upon a time there was a",
            "suffix": " who lived in a forest.",
            "max_tokens": 12,
        },
    },
    "holes": {
        "summary": "Fill several holes at once",
        "value": {
            "prompt": "",
            "infill": [
                "Tom had a",
                {"max_length": 4},
                " ball. He",
                {"length": 4},
                " with it and went home.",
            ],
        },
    },
    "constrained": {
        "summary": "An answer that is JSON of a schema",
        "value": {
            "prompt": "Tom is a boy, and he is six. ",
            "max_tokens": 40,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "name": {"enum": ["Tom", "Lily"]},
                            "age": {"type": "integer", "minimum": 0, "maximum": 99},
                        },
                        "required": ["name", "age"],
                    }
                },
            },
        },
    },
    "diffusing": {
        "summary": "Watch the canvas fill in",
        "value": {
            "prompt": "The little dog",
            "max_tokens": 32,
            "strategy": {"type": "confidence_threshold", "threshold": 0.9},
            "stream": True,
            "diffusing": True,
        },
    },
}
CHAT_EXAMPLES: Examples = {
    "tools": {
        "summary": "A call of a function",
        "value": {
            "messages": [{"role": "user", "content": "Paint the cat red."}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "paint",
                        "parameters": {
                            "type": "object",
                            "properties": {"colour": {"enum": ["red", "green"]}},
                            "required": ["colour"],
                        },
                    },
                }
            ],
            "tool_choice": "required",
            "max_completion_tokens": 64,
        },
    },
    "chat": {
        "summary": "One answer",
        "value": {
            "messages": [{"role": "user", "content": "Tell me a story about a dog."}],
            "max_completion_tokens": 48,
        },
    },
    "logprobs": {
        "summary": "With the most likely tokens of every position",
        "value": {
            "messages": [{"role": "user", "content": "Tell me a story about a bird."}],
            "max_completion_tokens": 16,
            "logprobs": True,
            "top_logprobs": 2,
        },
    },
    "stream": {
        "summary": "Streamed, with the token counts at the end",
        "value": {
            "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
            "max_completion_tokens": 48,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
FIM_EXAMPLES: Examples = {
    "gap": {
        "summary": "Fill a gap",
        "value": {
            "prompt": "Tom had a red ball. He",
            "suffix": " Then he went home.",
            "max_tokens": 12,
        },
    },
    "stream": {
        "summary": "Streamed, from a seed",
        "value": {
            "prompt": "The little dog",
            "suffix": " was very happy.",
            "max_tokens": 12,
            "random_seed": 7,
            "stream": True,
        },
    },
}
RESPONSE_EXAMPLES: Examples = {
    "text": {
        "summary": "One answer",
        "value": {
            "instructions": "You tell stories.",
            "input": "Tell me a story about a dog.",
            "max_output_tokens": 48,
        },
    },
    "conversation": {
        "summary": "A conversation, with the most likely tokens of every position",
        "value": {
            "input": [
                {"role": "user", "content": "Tell me a story about a cat."},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "The cat had a hat."}],
                },
                {"role": "user", "content": [{"type": "input_text", "text": "And a bird?"}]},
            ],
            "max_output_tokens": 16,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
        },
    },
    "diffusing": {
        "summary": "Watch the canvas fill in",
        "value": {
            "input": "Tell me a story about a bird.",
            "max_output_tokens": 32,
            "strategy": {"type": "confidence_threshold", "threshold": 0.9},
            "stream": True,
            "diffusing": True,
        },
    },
}
