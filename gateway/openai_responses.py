"""Requests of OpenAI's Responses API as msgspec types, like those of openai.py.

Knows nothing of gRPC. The replies are in response_replies.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .formats import TextFormat
from .openai import EMPTY_LIST, CommonFields, Positive, Role, TopLogprobs, only
from .tools import FunctionName, ParallelCalls, ResponseChoice, ResponseTools

_NULL = {"type": "null"}

MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]

# What OpenAI can add to an answer. Of these only the probabilities exist here: there are no
# built-in tools, images or thoughts whose parts could be asked for.
LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class InputPart(Struct, kw_only=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["input_text", "output_text"]})]
    # Absent in parts that are refused for their type.
    text: str | UnsetType = UNSET


class ResultPart(Struct, kw_only=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["input_text"]})]
    text: str | UnsetType = UNSET


class InputItem(Struct, kw_only=True):
    """A message of the conversation, a call or what it returned; also as an earlier answer's output."""

    type: Annotated[
        str | None,
        Meta(
            extra_json_schema={"enum": ["message", "function_call", "function_call_output", None]}
        ),
    ] = "message"
    # Which fields there must be depends on the type.
    role: Role | UnsetType = UNSET
    content: Annotated[
        str | list[InputPart] | UnsetType | None,
        Meta(description="Text, or text parts, which are joined without anything between them."),
    ] = UNSET
    call_id: str | UnsetType = UNSET
    name: FunctionName | UnsetType = UNSET
    arguments: Annotated[
        str | UnsetType, Meta(description="Of a call: a JSON object, as JSON.")
    ] = UNSET
    output: Annotated[
        str | list[ResultPart] | UnsetType, Meta(description="What the function returned.")
    ] = UNSET


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Annotated[
        Any, only({"enum": ["medium", None]}, "Not supported other than medium.")
    ] = None


class Reasoning(Struct, kw_only=True):
    effort: Annotated[Any, only({"enum": ["none", None]}, "There is no reasoning.")] = None
    summary: Annotated[Any, only(_NULL, "There is no reasoning.")] = None
    generate_summary: Annotated[Any, only(_NULL, "There is no reasoning.")] = None


class ResponseStreamOptions(Struct, kw_only=True):
    include_obfuscation: Annotated[
        bool | None, Meta(description="Without effect: nothing is obfuscated.")
    ] = None


class ResponseRequest(CommonFields, kw_only=True):
    """POST /v1/responses. Fields that are not listed are accepted and have no effect."""

    input: Annotated[
        str | Annotated[list[InputItem], Meta(min_length=1)],
        Meta(description="What the user says, or the conversation so far."),
    ]
    instructions: Annotated[
        str | None, Meta(description="What the model is told before the input, as its system.")
    ] = None
    max_output_tokens: Annotated[
        Positive | None,
        Meta(description="Positions to generate. Default: the server's default_max_new_tokens."),
    ] = None
    include: Annotated[
        list[Include] | None,
        Meta(
            description=f"{LOGPROBS} tells each token's logarithmic probability in the forward "
            "pass that committed it. The others have nothing to add here."
        ),
    ] = None
    top_logprobs: Annotated[
        TopLogprobs | None,
        Meta(description=f"With {LOGPROBS}: this many of the most likely tokens beside each."),
    ] = None
    text: TextOptions | None = None
    metadata: Annotated[
        Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None,
        Meta(description="Comes back with the answer."),
    ] = None
    store: Annotated[
        bool | None, Meta(description="Without effect: nothing is stored, and the answer says so.")
    ] = None
    tools: Annotated[ResponseTools, Meta(description="Functions that the answer may call.")] = None
    tool_choice: ResponseChoice = None
    parallel_tool_calls: ParallelCalls = None
    stream_options: ResponseStreamOptions | None = None
    diffusing: Annotated[
        bool | None,
        Meta(
            description="Only with stream: also send a delta with a `diffusion` for every "
            "denoising step."
        ),
    ] = None

    # Refused unless they say nothing.
    n: Annotated[Any, only({"enum": [1, None]}, "Only 1.")] = None
    return_trajectory: Annotated[
        Any, only({"enum": [False, None]}, "Not here: stream with diffusing.")
    ] = None
    previous_response_id: Annotated[Any, only(_NULL, "Not supported: nothing is stored.")] = None
    conversation: Annotated[Any, only(_NULL, "Not supported: nothing is stored.")] = None
    background: Annotated[Any, only({"enum": [False, None]}, "Not supported.")] = None
    prompt: Annotated[Any, only(_NULL, "Not supported: nothing is stored.")] = None
    max_tool_calls: Annotated[Any, only(_NULL, "There are no built-in tools.")] = None
    reasoning: Reasoning | None = None
    truncation: Annotated[
        Any,
        only({"enum": ["disabled", None]}, "Not supported: what is too long is refused."),
    ] = None
    context_management: Annotated[Any, only(EMPTY_LIST, "Not supported.")] = None
    moderation: Annotated[Any, only(_NULL, "Not supported.")] = None
    # Chat's names of what has another one here.
    messages: Annotated[Any, only(_NULL, "Its name here is input.")] = None
    max_tokens: Annotated[Any, only(_NULL, "Its name here is max_output_tokens.")] = None
    max_completion_tokens: Annotated[Any, only(_NULL, "Its name here is max_output_tokens.")] = None
    response_format: Annotated[Any, only(_NULL, "Its name here is text.format.")] = None
    logprobs: Annotated[
        Any, only({"enum": [False, None]}, f"Its name here is include: {LOGPROBS}.")
    ] = None
    suffix: Annotated[Any, only(_NULL, "Not here: see /v1/completions.")] = None


RESPONSE_DECODER = msgspec.json.Decoder(ResponseRequest)
