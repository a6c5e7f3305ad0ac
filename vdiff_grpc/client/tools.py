"""Functions that an answer may call, and the calls that it makes. Knows no channel."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from vdiff_grpc import v1
from vdiff_grpc.client.constraints import Schema, json_schema

# What the server holds calls to: generation.proto, ChatInput.tools.
_CALL = re.compile(r'\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": (\{.*\})\}')
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

_MODES = {
    "none": v1.TOOL_MODE_NONE,
    "auto": v1.TOOL_MODE_AUTO,
    "required": v1.TOOL_MODE_REQUIRED,
}


def tool(name: str, parameters: Schema | None = None, description: str = "") -> v1.Tool:
    """A function. parameters: of its arguments, as of json_schema(...); None: it has none."""
    schema = "" if parameters is None else json_schema(parameters).json_schema
    return v1.Tool(name=name, description=description, parameters=schema)


def calls(text: str) -> list[v1.ToolCall]:
    """Those that an answer makes, in order; none in an answer without. Ids are drawn."""
    _, tag, after = text.partition(f"{_OPEN}\n")
    made = []
    for line in (after if tag else text).split("\n"):
        if line in (_OPEN, _CLOSE):
            continue
        if (call := _CALL.fullmatch(line)) is None:
            break  # the text of an answer without calls, or a call that was cut off
        call_id = f"call_{secrets.token_hex(12)}"
        made.append(v1.ToolCall(id=call_id, name=call[1], arguments=call[2]))
    return made


def chat_input(
    messages: Iterable[v1.ChatMessage],
    tools: Iterable[v1.Tool] | None,
    tool_choice: str | v1.ToolChoice | None,
    parallel_tool_calls: bool | None,
) -> v1.ChatInput:
    """tool_choice: none, auto, required, or a function's name."""
    choice = tool_choice
    if isinstance(choice, str):
        mode = _MODES.get(choice)
        choice = v1.ToolChoice(name=choice) if mode is None else v1.ToolChoice(mode=mode)
    if parallel_tool_calls is not None:
        choice = v1.ToolChoice.FromString((choice or v1.ToolChoice()).SerializeToString())
        choice.parallel = parallel_tool_calls
    return v1.ChatInput(messages=messages, tools=tools, tool_choice=choice)
