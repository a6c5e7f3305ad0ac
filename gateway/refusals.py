"""Says which of OpenAI's fields are refused: those that would change the answer and cannot yet.

A field whose value says nothing (`tools: []`) is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from .errors import ApiError, invalid, unsupported
from .openai import ChatMessage, ChatRequest, CompletionRequest, GenerationFields

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
    (
        "response_format",
        lambda value: value is None or (isinstance(value, dict) and value.get("type") == "text"),
        'response_format is not supported other than {"type": "text"}',
    ),
    ("latency_budget_ms", _ABSENT, "latency_budget_ms is not supported"),
)
_CHAT: tuple[_Rule, ...] = (
    ("tools", _EMPTY_LIST, "tools are not supported"),
    ("tool_choice", _one_of("none", "auto", None), "tool_choice is not supported: no tools are"),
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
    ("tool_calls", _EMPTY_LIST, "tool calls are not supported"),
    ("function_call", _ABSENT, "function calls are not supported"),
    ("audio", _ABSENT, "audio is not supported"),
)


def check_completion(request: CompletionRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check(request, _COMMON)
    _check_generation(request)
    n = request.n or 1
    if not _one_of(1, n, None)(request.best_of):
        raise unsupported("best_of", "best_of is not supported other than 1 or n")
    if request.echo and request.logprobs is not None:
        raise unsupported("logprobs", "logprobs with echo are not supported: a prompt has none")
    if request.echo and not _is_text(request.prompt):
        raise invalid("echo (true) needs text prompts, not token ids", "echo")
    if request.suffix is not None and not _is_text(request.prompt):
        raise invalid("suffix needs text prompts, not token ids", "suffix")


def check_chat(request: ChatRequest) -> None:
    """Raises ApiError for the first field that cannot be honoured."""
    _check(request, _COMMON)
    _check(request, _CHAT)
    _check_generation(request)
    if request.top_logprobs and not request.logprobs:
        raise invalid(
            f"top_logprobs ({request.top_logprobs}) needs logprobs (true)", "top_logprobs"
        )
    for i, message in enumerate(request.messages):
        _check_message(message, f"messages[{i}]")


def _check(value: Any, rules: tuple[_Rule, ...], prefix: str = "") -> None:
    for name, says_nothing, why in rules:
        if not says_nothing(getattr(value, name)):
            raise unsupported(prefix + name, why)


def _check_generation(request: GenerationFields) -> None:
    if request.diffusing and not request.stream:
        raise invalid("diffusing (true) needs stream (true)", "diffusing")
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid(
            f"max_completion_tokens ({new}) and max_tokens ({old}) are two names of one field",
            "max_completion_tokens",
        )


def _check_message(message: ChatMessage, path: str) -> None:
    _check(message, _MESSAGE, path + ".")
    if isinstance(message.content, str):
        return
    for i, part in enumerate(message.content):
        if part.type != "text":
            raise _wrong_part(f"{path}.content[{i}]", part.type)
        if part.text is UNSET:
            raise invalid(f"{path}.content[{i}].text is required", f"{path}.content[{i}].text")


def _wrong_part(path: str, kind: str) -> ApiError:
    return unsupported(f"{path}.type", f"{path}.type ({kind[:40]!r}): only 'text' is supported")


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or all(isinstance(item, str) for item in prompt)
