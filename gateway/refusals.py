"""Says which of OpenAI's fields are refused: those that would change the answer and cannot yet.

A field whose value says nothing (`tools: []`) is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from .errors import ApiError, invalid, missing, unsupported
from .openai import (
    ChatMessage,
    ChatRequest,
    CommonFields,
    CompletionRequest,
    ContentPart,
    FimRequest,
    GenerationFields,
)
from .openai_responses import LOGPROBS, InputItem, InputPart, ResponseRequest, ResultPart
from .tools import check_type

_Rule = tuple[str, Callable[[Any], bool], str]

_ABSENT: Callable[[Any], bool] = lambda value: value is None  # noqa: E731


def _one_of(*values: Any) -> Callable[[Any], bool]:
    # By type too: 0 == False.
    return lambda value: any(value is v or (v == value and type(v) is type(value)) for v in values)


_EMPTY_LIST = _one_of([], None)
_ZERO = _one_of(0, 0.0, None)

# (field, what says nothing, why everything else is refused)
_COMMON: tuple[_Rule, ...] = (
    ("logit_bias", _one_of({}, None), "logit_bias is not supported"),
    ("presence_penalty", _ZERO, "presence_penalty is not supported other than 0"),
    ("frequency_penalty", _ZERO, "frequency_penalty is not supported other than 0"),
)
_BEST_OF: _Rule = (
    "best_of",
    _one_of(1, None),
    "best_of is not a field of this API: see /v1/completions",
)
_FIM: tuple[_Rule, ...] = (_BEST_OF,)
_CHAT: tuple[_Rule, ...] = (
    _BEST_OF,
    ("functions", _EMPTY_LIST, "functions are not supported"),
    (
        "function_call",
        _one_of("none", "auto", None),
        "function_call is not supported: no functions are",
    ),
    ("audio", _ABSENT, "audio is not supported"),
    ("modalities", _one_of([], ["text"], None), 'modalities are not supported other than ["text"]'),
    ("web_search_options", _ABSENT, "web search is not supported"),
)
_MESSAGE: tuple[_Rule, ...] = (
    ("function_call", _ABSENT, "function calls are not supported"),
    ("audio", _ABSENT, "audio is not supported"),
)
_NOT_STORED = "is not supported: nothing is stored here"
_RESPONSE: tuple[_Rule, ...] = (
    _BEST_OF,
    (
        "return_trajectory",
        _one_of(False, None),
        "return_trajectory is not supported here: stream with diffusing",
    ),
    ("n", _one_of(1, None), "n is not supported other than 1: a response has one answer"),
    ("previous_response_id", _ABSENT, f"previous_response_id {_NOT_STORED}"),
    ("conversation", _ABSENT, f"conversation {_NOT_STORED}"),
    ("background", _one_of(False, None), f"background {_NOT_STORED}"),
    ("prompt", _ABSENT, f"prompt {_NOT_STORED}; the text goes into input"),
    ("max_tool_calls", _ABSENT, "max_tool_calls is not supported: there are no built-in tools"),
    (
        "truncation",
        _one_of("disabled", None),
        "truncation is not supported other than disabled: what is too long is refused",
    ),
    ("context_management", _EMPTY_LIST, "context_management is not supported"),
    ("moderation", _ABSENT, "moderation is not supported"),
    ("messages", _ABSENT, "messages is not a field of this API; its name here is input"),
    ("max_tokens", _ABSENT, "max_tokens is not a field of this API: see max_output_tokens"),
    (
        "max_completion_tokens",
        _ABSENT,
        "max_completion_tokens is not a field of this API: see max_output_tokens",
    ),
    ("response_format", _ABSENT, "response_format is not a field of this API: see text.format"),
    ("logprobs", _one_of(False, None), f"logprobs is not a field of this API: include {LOGPROBS}"),
    ("suffix", _ABSENT, "suffix is not supported here: see /v1/completions"),
)
_REASONING: tuple[_Rule, ...] = (
    ("effort", _one_of("none", None), "reasoning.effort is not supported other than none"),
    ("summary", _ABSENT, "reasoning.summary is not supported: there is no reasoning"),
    ("generate_summary", _ABSENT, "reasoning.generate_summary is not supported"),
)


def check_completion(request: CompletionRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check_generation(request)
    n, best_of = request.n or 1, request.best_of
    if best_of is not None and best_of < n:
        raise invalid(f"best_of ({best_of}) must be at least n ({n})", "best_of")
    if best_of is not None and best_of > n and request.stream:
        raise invalid(f"best_of ({best_of}) above n ({n}) cannot be used with stream", "best_of")
    if request.echo and request.logprobs is not None:
        raise unsupported("logprobs", "logprobs with echo are not supported: a prompt has none")
    if request.infill is None and request.prompt is UNSET:
        raise missing("prompt")
    if request.infill is not None and request.prompt not in ("", UNSET):
        raise invalid("infill cannot be set with a prompt: its text goes into infill", "prompt")
    for name in ("suffix", "min_tokens"):
        if request.infill is not None and getattr(request, name):
            raise invalid(f"{name} cannot be set with infill: see its holes", name)
    if request.infill is not None and request.echo:
        raise invalid("echo (true) cannot be used with infill", "echo")
    if request.echo and not _is_text(request.prompt):
        raise invalid("echo (true) needs text prompts, not token ids", "echo")
    if request.suffix is not None and not _is_text(request.prompt):
        raise invalid("suffix needs text prompts, not token ids", "suffix")
    _check_min_tokens(request)


def check_chat(request: ChatRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check(request, _CHAT)
    _check_generation(request)
    _check_top_logprobs(request)
    for i, message in enumerate(request.messages):
        _check_message(message, f"messages[{i}]")


def check_fim(request: FimRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check(request, _FIM)
    _check_generation(request)
    _check_min_tokens(request)
    _check_top_logprobs(request)
    if None not in (request.seed, request.random_seed) and request.seed != request.random_seed:
        raise invalid(
            f"random_seed ({request.random_seed}) and seed ({request.seed}) are two names of one "
            "field",
            "random_seed",
        )


def check_response(request: ResponseRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check(request, _RESPONSE)
    _check_common(request)
    if request.diffusing and not request.stream:
        raise invalid("diffusing (true) needs stream (true)", "diffusing")
    if request.reasoning is not None:
        _check(request.reasoning, _REASONING, "reasoning.")
    if request.text is not None and not _one_of("medium", None)(request.text.verbosity):
        raise unsupported("text.verbosity", "text.verbosity is not supported other than medium")
    if request.top_logprobs and LOGPROBS not in (request.include or ()):
        raise invalid(
            f"top_logprobs ({request.top_logprobs}) needs {LOGPROBS} in include", "top_logprobs"
        )
    if not isinstance(request.input, str):
        for i, item in enumerate(request.input):
            _check_item(item, f"input[{i}]")


def _check(value: Any, rules: tuple[_Rule, ...], prefix: str = "") -> None:
    for name, says_nothing, why in rules:
        if not says_nothing(getattr(value, name)):
            raise unsupported(prefix + name, why)


def _check_common(request: CommonFields) -> None:
    _check(request, _COMMON)
    if request.return_trajectory and request.stream:
        raise invalid(
            "return_trajectory (true) cannot be used with stream: diffusing tells the same",
            "return_trajectory",
        )


def _check_generation(request: GenerationFields) -> None:
    _check_common(request)
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid(
            f"max_completion_tokens ({new}) and max_tokens ({old}) are two names of one field",
            "max_completion_tokens",
        )


def _check_min_tokens(request: CompletionRequest | FimRequest) -> None:
    if not request.min_tokens:
        return
    if request.suffix is None:
        what = "a suffix: of a continuation no least length can be asked"
        raise invalid(f"min_tokens ({request.min_tokens}) needs {what}", "min_tokens")
    if request.max_tokens is None and request.max_completion_tokens is None:
        raise invalid(f"min_tokens ({request.min_tokens}) needs max_tokens", "min_tokens")


def _check_top_logprobs(request: ChatRequest | FimRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise invalid(
            f"top_logprobs ({request.top_logprobs}) needs logprobs (true)", "top_logprobs"
        )


def _check_message(message: ChatMessage, path: str) -> None:
    _check(message, _MESSAGE, path + ".")
    for i, call in enumerate(message.tool_calls or ()):
        check_type(call.type, f"{path}.tool_calls[{i}]")
        if call.function is UNSET:
            raise missing(f"{path}.tool_calls[{i}].function")
    if message.role == "tool" and not message.tool_call_id:
        raise missing(f"{path}.tool_call_id")
    if isinstance(message.content, str | list):
        _check_content(message.content, path, ("text",))
    elif not message.tool_calls:
        raise missing(f"{path}.content")


def _check_item(item: InputItem, path: str) -> None:
    if not isinstance(item.output, UnsetType):
        _check_content(item.output, path, ("input_text",), "output")
    if isinstance(item.content, str | list):
        _check_content(item.content, path, ("input_text", "output_text"))
    if item.type == "function_call":
        _check_given(item, path, "call_id", "name", "arguments")
        return
    if item.type == "function_call_output":
        _check_given(item, path, "call_id", "output")
        return
    if item.type not in ("message", None):
        raise _wrong_type(path, item.type, ("message", "function_call", "function_call_output"))
    if item.role is UNSET:
        raise missing(f"{path}.role")
    if item.content is UNSET or item.content is None:
        raise missing(f"{path}.content")


def _check_given(item: InputItem, path: str, *names: str) -> None:
    for name in names:
        if getattr(item, name) is UNSET:
            raise missing(f"{path}.{name}")


def _check_content(
    content: str | Sequence[ContentPart | InputPart | ResultPart],
    path: str,
    types: tuple[str, ...],
    name: str = "content",
) -> None:
    if isinstance(content, str):
        return
    for i, part in enumerate(content):
        if part.type not in types:
            raise _wrong_type(f"{path}.{name}[{i}]", part.type, types)
        if part.text is UNSET:
            raise missing(f"{path}.{name}[{i}].text")


def _wrong_type(path: str, kind: str, types: tuple[str, ...]) -> ApiError:
    supported = (
        ", ".join(map(repr, types[:-1])) + (" and " if len(types) > 1 else "") + repr(types[-1])
    )
    what = f"{path}.type ({kind[:40]!r})"
    return unsupported(
        f"{path}.type", f"{what}: only {supported} {'is' if len(types) == 1 else 'are'} supported"
    )


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str | UnsetType) or all(isinstance(item, str) for item in prompt)
