"""OpenAI's requests as msgspec types: they decode, and are the source of the OpenAPI document.

Knows nothing of gRPC. Fields that stand here as `Any` are refused unless they say nothing,
see refusals.py; the replies are in openai_replies.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .formats import ResponseFormat
from .infill import InfillSegment
from .strategies import Strategy, choices
from .tools import ChatChoice, ChatTools, MessageCall, ParallelCalls

_UINT32 = 2**32 - 1

Positive = Annotated[int, Meta(ge=1, le=_UINT32)]
TokenId = Annotated[int, Meta(ge=0, le=_UINT32)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
TellLogprobs = Annotated[
    bool | None,
    Meta(
        description="Tell each token's logarithmic probability in the forward pass that "
        "committed it."
    ),
]
TellTopLogprobs = Annotated[
    TopLogprobs | None,
    Meta(description="With logprobs: this many of the most likely tokens beside each."),
]


def only(schema: dict[str, Any], description: str) -> Meta:
    """A field of OpenAI's that has only one meaning here; the schema says which values."""
    return Meta(description=description, extra_json_schema=schema)


EMPTY_LIST = {"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]}

Role = Literal["system", "developer", "user", "assistant"]
ChatRole = Literal["system", "developer", "user", "assistant", "tool"]


class StreamOptions(Struct, kw_only=True):
    include_usage: Annotated[
        bool | None, Meta(description="Send a last chunk with the token counts.")
    ] = None


class CommonFields(Struct, kw_only=True):
    """What all ways to generate have in common."""

    model: Annotated[
        str | None, Meta(description="Name of the served model. Absent: the one that is served.")
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="0 takes the most likely token. Default: the model's."),
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None, Meta(description="Default 1: keep everything.")
    ] = None
    top_k: Annotated[
        TokenId | None, Meta(description="Keep the k most likely tokens; 0 keeps everything.")
    ] = None
    n: Annotated[Positive | None, Meta(description="Answers per prompt. Default 1.")] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=4)] | None,
        Meta(description="The text ends before the first of these. At most 4."),
    ] = None
    seed: Annotated[
        int | None,
        Meta(
            description="The same request with the same seed gives the same answer. Taken modulo "
            "2^64. Default: drawn by the server."
        ),
    ] = None
    stream: Annotated[bool | None, Meta(description="Answer with server-sent events.")] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="Never generate the model's end tokens.")
    ] = None

    # Diffusion's own; `extra_body` of the OpenAI clients puts them here.
    steps: Annotated[
        Positive | None,
        Meta(description="Denoising steps over all blocks. Default: one token per step."),
    ] = None
    block_length: Annotated[
        Positive | None,
        Meta(description="Positions that are filled together. Default: the server's."),
    ] = None
    cfg_scale: Annotated[
        Annotated[float, Meta(ge=0, le=16)] | None,
        Meta(description="Classifier-free guidance; 0 is off. Above 0 a step costs two passes."),
    ] = None
    cache: Annotated[
        Literal["none", "settled", "prefix", "dual"] | None,
        Meta(
            description="What is kept of the canvas from pass to pass; prefix and dual are "
            "approximate. Default: the model's."
        ),
    ] = None
    cache_refresh_steps: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="With cache prefix or dual: compute all anew after so many passes."),
    ] = None
    suffix_window: Annotated[
        TokenId | None,
        Meta(description="Leave out masks more than so many positions behind the active block."),
    ] = None
    hole_lengths: Annotated[
        Literal["confidence", "native"] | None,
        Meta(
            description="How the length of a gap of min_tokens to max_tokens is found. Default: "
            "native where the model can."
        ),
    ] = None
    strategy: Annotated[
        Strategy | None,
        Meta(description="How positions are chosen. Default: the model's."),
    ] = None
    partial_on_deadline: Annotated[
        bool | None,
        Meta(
            description="Shortly before the gateway's or the server's time limit answer with what "
            "is filled, finish_reason length, in place of an error."
        ),
    ] = None
    priority: Annotated[
        Annotated[int, Meta(ge=-100, le=100)] | None,
        Meta(
            description="Among the requests that wait: the smaller goes first. Default 0; below "
            "that only with a key that may.",
        ),
    ] = None
    latency_budget_ms: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | None,
        Meta(
            description="Milliseconds in which the answer should be complete, waiting included: if "
            "need be more is filled in a step than the strategy would. Default: never hurried."
        ),
    ] = None
    diffusing: Annotated[
        bool | None,
        Meta(
            description="With stream: also send a chunk with a top-level `diffusion` for every "
            "denoising step. Without: put a `diffusion` into every choice, with the step and the "
            "confidence of each token."
        ),
    ] = None
    return_trajectory: Annotated[
        bool | None,
        Meta(
            description="Put a `diffusion` into every choice, with every change of the canvas. "
            "Not with stream, where `diffusing` tells the same."
        ),
    ] = None

    # Refused unless they say nothing.
    logit_bias: Annotated[
        Any,
        only(
            {"anyOf": [{"type": "object", "maxProperties": 0}, {"type": "null"}]},
            "Not supported.",
        ),
    ] = None
    presence_penalty: Annotated[Any, only({"enum": [0, None]}, "Not supported other than 0.")] = (
        None
    )
    frequency_penalty: Annotated[Any, only({"enum": [0, None]}, "Not supported other than 0.")] = (
        None
    )
    best_of: Annotated[Any, only({"enum": [1, None]}, "Not here: see /v1/completions.")] = None


class GenerationFields(CommonFields, kw_only=True):
    """What completions, chat and fim have in common."""

    max_tokens: Annotated[
        Positive | None,
        Meta(
            description="Positions to generate. Default: the server's default_max_new_tokens "
            "(not OpenAI's 16)."
        ),
    ] = None
    max_completion_tokens: Annotated[
        Positive | None, Meta(description="The newer name of max_tokens.")
    ] = None
    stream_options: StreamOptions | None = None
    response_format: Annotated[
        ResponseFormat | None, Meta(description="What the answer must be. Default: text.")
    ] = None
    guided_regex: Annotated[
        Annotated[str, Meta(max_length=32768)] | None,
        Meta(description="The whole answer matches, in Rust's syntax of regexes."),
    ] = None
    guided_choice: Annotated[
        Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1024)]
        | None,
        Meta(description="The answer is one of these."),
    ] = None


# OpenAI's own limit. Each is an RPC of its own.
MAX_PROMPTS = 2048

_TOKEN_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": _UINT32}
# msgspec cannot tell lists apart by what is in them; the document can.
PROMPT_SCHEMA: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items": _TOKEN_ID_SCHEMA},
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_PROMPTS,
        "items": {"type": "array", "minItems": 1, "items": _TOKEN_ID_SCHEMA},
    },
]


MinTokens = Annotated[
    TokenId | None,
    Meta(
        description="With suffix: the gap's length is chosen, from so many positions to max_tokens, "
        "which then is needed. 0 or absent: the gap has max_tokens positions. Refused without suffix."
    ),
]


class CompletionRequest(GenerationFields, kw_only=True):
    """POST /v1/completions. Fields that are not listed are accepted and have no effect."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]] | UnsetType,
        Meta(
            description="Text, token ids, or a list of either. A list is answered all or nothing; "
            "choice i * n + j is answer j to prompt i. Required, except with infill."
        ),
    ] = UNSET
    suffix: Annotated[
        str | None,
        Meta(description="Text that follows: the gap between prompt and suffix is filled in."),
    ] = None
    min_tokens: MinTokens = None
    infill: Annotated[
        list[InfillSegment] | None,
        Meta(
            description="In place of a prompt, which then is empty: a document with holes, all of "
            "which are filled at once. Text, lists of token ids, and holes, in order; at most 256. "
            "Not with suffix, max_tokens and echo; constraints are the holes' own."
        ),
    ] = None
    echo: Annotated[
        bool | None, Meta(description="Put the prompt before the answer. Only for text prompts.")
    ] = None
    logprobs: Annotated[
        TopLogprobs | None,
        Meta(
            description="Tell each token's logarithmic probability in the forward pass that "
            "committed it, and this many of the most likely tokens beside it. Not with echo."
        ),
    ] = None
    best_of: Annotated[
        Positive | None,
        Meta(
            description="Make so many answers, at least n, and return the n that the model itself "
            "finds most likely, per token, best first. Above n not with stream. All of them are "
            "computed and count as completion_tokens."
        ),
    ] = None


class FimRequest(GenerationFields, kw_only=True):
    """POST /v1/fim/completions. Fields that are not listed are accepted and have no effect."""

    prompt: Annotated[str, Meta(description="Text before the gap.")]
    suffix: Annotated[
        str | None, Meta(description="Text behind the gap. Absent: the prompt is continued.")
    ] = None
    random_seed: Annotated[int | None, Meta(description="Mistral's name of seed.")] = None
    logprobs: TellLogprobs = None
    top_logprobs: TellTopLogprobs = None
    min_tokens: MinTokens = None


class ContentPart(Struct, kw_only=True):
    type: Annotated[str, Meta(extra_json_schema={"const": "text"})]
    # Absent in parts that are refused for their type.
    text: str | UnsetType = UNSET


class ChatMessage(Struct, kw_only=True):
    role: ChatRole
    content: Annotated[
        str | list[ContentPart] | UnsetType | None,
        Meta(
            description="Text, or text parts, which are joined without anything between them. Only "
            "where there are tool_calls it may be absent."
        ),
    ] = UNSET
    tool_calls: Annotated[
        list[MessageCall] | None, Meta(description="Of the assistant: what it has called.")
    ] = None
    tool_call_id: Annotated[
        str | None, Meta(description="Of a tool: which call before it this answers.")
    ] = None
    function_call: Annotated[Any, only({"type": "null"}, "Not supported.")] = None
    audio: Annotated[Any, only({"type": "null"}, "Not supported.")] = None


class ChatRequest(GenerationFields, kw_only=True):
    """POST /v1/chat/completions. Fields that are not listed are accepted and have no effect."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    logprobs: TellLogprobs = None
    top_logprobs: TellTopLogprobs = None
    tools: Annotated[ChatTools, Meta(description="Functions that the answer may call.")] = None
    tool_choice: ChatChoice = None
    parallel_tool_calls: ParallelCalls = None
    functions: Annotated[Any, only(EMPTY_LIST, "Not supported.")] = None
    function_call: Annotated[
        Any, only({"enum": ["none", "auto", None]}, "There are no functions.")
    ] = None
    audio: Annotated[Any, only({"type": "null"}, "Not supported.")] = None
    modalities: Annotated[
        Any,
        only(
            {
                "anyOf": [
                    {"type": "array", "items": {"const": "text"}, "maxItems": 1},
                    {"type": "null"},
                ]
            },
            "Only text.",
        ),
    ] = None
    web_search_options: Annotated[Any, only({"type": "null"}, "Not supported.")] = None


# For error messages: what a field with few values may be.
CHOICES = {"role": get_args(Role), **choices()}
CHAT_CHOICES = CHOICES | {"role": get_args(ChatRole)}

COMPLETION_DECODER = msgspec.json.Decoder(CompletionRequest)
FIM_DECODER = msgspec.json.Decoder(FimRequest)
CHAT_DECODER = msgspec.json.Decoder(ChatRequest)
