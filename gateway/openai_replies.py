"""OpenAI's replies as msgspec types: they encode, and are the source of the OpenAPI document.

Knows nothing of gRPC. `diffusion` is ours: it shows the canvas as it fills in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


Hurried = Annotated[
    Literal[True] | UnsetType,
    Meta(
        description="More was filled in a step than the strategy would have, for the sake of the latency budget; left out where it was not."
    ),
]


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: Annotated[
        int,
        Meta(
            description="Of prompt_tokens, those that an earlier prompt had left behind: they were not read again."
        ),
    ]


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    hurried: Hurried = UNSET


class CompletionLogprobs(Struct, frozen=True):
    """Parallel columns: one entry per token of the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: Annotated[
        list[int], Meta(description="Where the token begins in the answer's text, in characters.")
    ]


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    diffusion: ChoiceDiffusion | UnsetType = UNSET
    hole_texts: Annotated[
        list[str] | UnsetType,
        Meta(description="With infill: each hole's text, in order. `text` is all of them."),
    ] = UNSET
    hole_index: Annotated[
        int | UnsetType,
        Meta(description="With infill, in a stream: the hole that `text` belongs to, from 0."),
    ] = UNSET


class Completion(Struct, frozen=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """A token, and the most likely ones of its position, falling."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct, frozen=True):
    name: str
    arguments: Annotated[
        str, Meta(description="JSON, valid by the tool's schema unless the answer was cut off.")
    ]


class ToolCall(Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(Struct, frozen=True):
    role: Literal["assistant"]
    content: Annotated[str | None, Meta(description="null where there are tool_calls and no text.")]
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    diffusion: ChoiceDiffusion | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


SpanKind = Literal["prompt", "frozen", "hole", "surplus"]


class CanvasSpan(Struct, frozen=True):
    """`surplus` is filled, but no part of the answer."""

    kind: SpanKind
    length: int


_CanvasTokens = Annotated[
    list[str], Meta(description="Each token alone, for display; empty where nothing is yet.")
]


class DiffusionStart(Struct, frozen=True, tag_field="kind", tag="start"):
    """The canvas before the first step; position 0 is the first prompt token."""

    index: int
    token_ids: list[int]
    mask_token_id: int
    spans: list[CanvasSpan]
    tokens: _CanvasTokens


class _DiffusionStep(Struct, frozen=True):
    index: int
    step: int
    block: int
    forward_passes: int
    positions: list[int]
    token_ids: list[int]
    tokens: Annotated[
        list[str], Meta(description="Each token alone, for display; the text is in the deltas.")
    ]
    confidences: list[float]


class DiffusionUnmask(_DiffusionStep, frozen=True, tag_field="kind", tag="unmask"):
    """Positions that one denoising step filled. The columns are parallel."""

    hurried: Annotated[
        bool | UnsetType,
        Meta(
            description="True where some were filled earlier than the strategy would have, for the "
            "sake of the latency budget. Else absent."
        ),
    ] = UNSET


class DiffusionRevise(_DiffusionStep, frozen=True, tag_field="kind", tag="revise"):
    """Positions that got another token."""


class DiffusionRemask(_DiffusionStep, frozen=True, tag_field="kind", tag="remask"):
    """Positions that were masked again; token_ids are the mask's."""


class DiffusionSnapshot(Struct, frozen=True, tag_field="kind", tag="snapshot"):
    """The whole canvas, in place of steps that a slow reader had not taken in time."""

    index: int
    step: int
    block: int
    forward_passes: int
    positions: list[int]
    token_ids: list[int]
    confidences: list[float]
    tokens: _CanvasTokens


_Hurried = Annotated[
    bool | UnsetType,
    Meta(
        description="True where an answer to this prompt was hurried for the sake of the latency "
        "budget: another time it may have other tokens. Else absent."
    ),
]


class DiffusionEnd(Struct, frozen=True, tag_field="kind", tag="end"):
    """What the answer cost. A request with this seed and n = 1 gives it again."""

    index: int
    seed: int
    forward_passes: int
    hurried: _Hurried = UNSET


Diffusion = (
    DiffusionStart
    | DiffusionUnmask
    | DiffusionRevise
    | DiffusionRemask
    | DiffusionSnapshot
    | DiffusionEnd
)


DiffusionChange = DiffusionUnmask | DiffusionRevise | DiffusionRemask


class ChoiceDiffusion(Struct, frozen=True):
    """How one whole answer came about. The columns are parallel, one entry per token.

    A request with this seed and n = 1 gives the answer again.
    """

    seed: int
    forward_passes: int
    positions: list[int]
    token_ids: list[int]
    steps: Annotated[
        list[int], Meta(description="Denoising step, from 0, that committed the token.")
    ]
    confidences: list[float]
    score: Annotated[
        float | UnsetType,
        Meta(description="With best_of: logarithm of the answer's likelihood, in nats per token."),
    ] = UNSET
    trajectory: Annotated[
        list[DiffusionChange] | UnsetType,
        Meta(description="With return_trajectory: every change of the canvas, in order."),
    ] = UNSET
    hurried: _Hurried = UNSET


class CompletionChunk(Struct, frozen=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    diffusion: Diffusion | UnsetType = UNSET


class DeltaFunction(Struct, frozen=True):
    name: str | UnsetType = UNSET
    arguments: str = ""


class DeltaCall(Struct, frozen=True):
    """The first of a call has its id, type and name; arguments are to be joined."""

    index: int
    function: DeltaFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[DeltaCall] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct, frozen=True):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    diffusion: Diffusion | UnsetType = UNSET


class Model(Struct, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    revision: str
    max_model_len: Annotated[int, Meta(description="Prompt and generated tokens together.")]
    caches: Annotated[list[str], Meta(description="What `cache` may be; the first is the default.")]
    strategies: Annotated[
        list[str], Meta(description="The types of `strategy` that the model can decode by.")
    ]
    supports_infill: Annotated[bool, Meta(description="Whether `suffix` is taken.")]
    grows_holes: Annotated[
        bool, Meta(description="Whether a gap's length is found natively, while it is filled.")
    ]
    supports_chat: Annotated[bool, Meta(description="Whether it has a chat template.")]
    supports_tools: Annotated[
        bool, Meta(description="Whether that has tools: tool_choice auto is taken.")
    ]


class ModelList(Struct, frozen=True):
    object: Literal["list"]
    data: list[Model]


ENCODER = msgspec.json.Encoder()
