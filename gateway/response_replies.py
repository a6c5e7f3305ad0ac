"""The Responses API's replies and events as msgspec types, like those of openai_replies.py.

Knows nothing of gRPC. `diffusion` is ours: it shows the canvas as it fills in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import ErrorObject
from .formats import TextFormat
from .openai_replies import Diffusion, Hurried, TokenLogprob
from .tools import MODE, FlatChoice, FunctionTool

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCall(Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | FunctionCall

ResponseErrorCode = Literal["server_error", "rate_limit_exceeded"]


class ResponseError(Struct, frozen=True):
    code: ResponseErrorCode
    message: str


class IncompleteDetails(Struct, frozen=True):
    """The answer ended where its positions, or with partial_on_deadline its time, ended."""

    reason: Literal["max_output_tokens"]


class NoReasoning(Struct, frozen=True):
    effort: None = None
    summary: None = None


class TextSettings(Struct, frozen=True):
    format: TextFormat


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: Literal[0] = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: Literal[0] = 0


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    hurried: Hurried = UNSET


class Response(Struct, frozen=True, kw_only=True):
    """Temperature, top_p and max_output_tokens are those that were used."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: NoReasoning = NoReasoning()
    store: Literal[False] = False
    temperature: float
    text: TextSettings
    tool_choice: MODE | FlatChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


# --- events -----------------------------------------------------------------


class _Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int


class _ResponseEvent(_Event, frozen=True, kw_only=True):
    response: Response


class ResponseCreated(_ResponseEvent, frozen=True, tag="response.created"):
    pass


class ResponseInProgress(_ResponseEvent, frozen=True, tag="response.in_progress"):
    pass


class ResponseCompleted(_ResponseEvent, frozen=True, tag="response.completed"):
    pass


class ResponseIncomplete(_ResponseEvent, frozen=True, tag="response.incomplete"):
    pass


class ResponseFailed(_ResponseEvent, frozen=True, tag="response.failed"):
    pass


class _ItemEvent(_Event, frozen=True, kw_only=True):
    output_index: int
    item: OutputItem


class OutputItemAdded(_ItemEvent, frozen=True, tag="response.output_item.added"):
    pass


class OutputItemDone(_ItemEvent, frozen=True, tag="response.output_item.done"):
    pass


class _PartEvent(_Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int = 0  # a message comes before all calls
    content_index: int = 0


class ContentPartAdded(_PartEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: OutputText


class ContentPartDone(_PartEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: OutputText


class OutputTextDelta(_PartEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """Text that can no longer change. With `diffusion`, which is ours, it is empty."""

    delta: str
    logprobs: list[TokenLogprob] = []
    diffusion: Diffusion | UnsetType = UNSET


class OutputTextDone(_PartEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[TokenLogprob]


class _CallEvent(_Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int


class ArgumentsDelta(
    _CallEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    delta: str


class ArgumentsDone(
    _CallEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"
):
    name: str
    arguments: str


class ResponseErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """An error after the stream has begun, as OpenAI documents it and as it is sent there."""

    code: str | None
    message: str
    param: str | None
    error: ErrorObject


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | ContentPartDone
    | ArgumentsDelta
    | ArgumentsDone
    | OutputItemDone
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | ResponseErrorEvent
)
