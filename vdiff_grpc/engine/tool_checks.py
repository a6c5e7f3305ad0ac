"""Checks a conversation's tools and calls, and says what an answer with calls must be.

Knows no canvas and no automaton.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vdiff_grpc.engine.constraints.kinds import CallsConstraint, Constraint
from vdiff_grpc.engine.prompt_types import ChatMessage, ChatPrompt, Prompt, ToolChoice, ToolMode
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import ModelInfo

MAX_TOOLS = 128
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")


def calls_constraint(
    prompt: ChatPrompt, otherwise: Constraint | None, tokenizer: Tokenizer | None
) -> CallsConstraint:
    """otherwise: what an answer without calls must be."""
    choice = prompt.choice or ToolChoice()
    assert not isinstance(otherwise, CallsConstraint)
    return CallsConstraint(
        tuple(
            (number, tool.name, tool.parameters)
            for number, tool in enumerate(prompt.tools)
            if choice.name in ("", tool.name)
        ),
        tagged=tokenizer is not None and tokenizer.writes_calls,
        several=choice.parallel and not choice.name,
        free=choice.mode is ToolMode.AUTO and not choice.name,
        otherwise=otherwise,
    )


def check_chat(
    prompt: Prompt, info: ModelInfo, tokenizer: Tokenizer | None, bad: Violations
) -> None:
    """All but the schemas, which the constraint reads. Raises InvalidRequestError: what is wrong
    here cannot be put into a template."""
    if not isinstance(prompt, ChatPrompt):
        return
    _check_tools(prompt, bad)
    _check_choice(prompt, info, tokenizer, bad)
    called: set[str] = set()
    for index, message in enumerate(prompt.messages):
        _check_message(message, f"chat.messages[{index}]", called, bad)
    bad.raise_if_any()


def _check_tools(prompt: ChatPrompt, bad: Violations) -> None:
    if len(prompt.tools) > MAX_TOOLS:
        bad.add("chat.tools", f"tools has {len(prompt.tools)} tools; the limit is {MAX_TOOLS}")
        return
    seen: set[str] = set()
    for index, tool in enumerate(prompt.tools):
        field = f"chat.tools[{index}].name"
        if not _NAME.fullmatch(tool.name):
            why = "must be 1 to 64 letters, digits, _ and -"
            bad.add(field, f"tools: the name {tool.name[:80]!r} {why}")
        elif tool.name in seen:
            bad.add(field, f"tools: two have the name {tool.name!r}")
        seen.add(tool.name)
        try:
            _read(tool.parameters or "{}")
        except (ValueError, RecursionError) as error:
            bad.add(f"chat.tools[{index}].parameters", f"tools: parameters are no JSON: {error}")


def _check_choice(
    prompt: ChatPrompt, info: ModelInfo, tokenizer: Tokenizer | None, bad: Violations
) -> None:
    field, choice = "chat.tool_choice", prompt.choice
    if choice is not None and not prompt.tools:
        bad.add(field, "tool_choice cannot be set without tools")
        return
    if choice is not None and choice.name and choice.name not in {t.name for t in prompt.tools}:
        bad.add(field, f"tool_choice: no tool has the name {choice.name[:80]!r}")
    elif (
        prompt.may_call
        and calls_constraint(prompt, None, tokenizer).free
        and tokenizer is not None
        and not tokenizer.writes_calls
    ):
        bad.add(
            field,
            f"tool_choice auto cannot be used: the chat template of the model {info.name} has "
            "no form of calls that is known here; required, a function's name and none can",
        )


def _check_message(message: ChatMessage, field: str, called: set[str], bad: Violations) -> None:
    """called: the ids of the calls before it, to which its own are added."""
    if message.tool_calls and message.role != "assistant":
        bad.add(f"{field}.tool_calls", "tool_calls are the assistant's alone")
    for index, call in enumerate(message.tool_calls):
        at = f"{field}.tool_calls[{index}]"
        if not _NAME.fullmatch(call.name):
            bad.add(f"{at}.name", f"tool_calls: {call.name[:80]!r} is no function's name")
        if not _is_object(call.arguments):
            bad.add(f"{at}.arguments", "tool_calls: arguments must be a JSON object, as JSON")
        called.add(call.id)
    for name in ("tool_call_id", "name"):
        if getattr(message, name) and message.role != "tool":
            bad.add(f"{field}.{name}", f"{name} is of messages of the role tool alone")
    if message.role == "tool" and message.tool_call_id and message.tool_call_id not in called:
        why = f"tool_call_id ({message.tool_call_id[:80]!r}) is that of no call before it"
        bad.add(f"{field}.tool_call_id", why)


def _is_object(text: str) -> bool:
    try:
        return isinstance(_read(text), dict)
    except (ValueError, RecursionError):
        return False


def _read(text: str) -> Any:
    """ValueError for what is no JSON, or has half a character (a surrogate), which is no text."""
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()
    return value
