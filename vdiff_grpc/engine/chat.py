"""Owns a checkpoint's chat template: a conversation as text. Knows no tokens.

What the template can say of tools is found out by trying. Where it says nothing of them, they are
spelled out in messages of the roles that every template has.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import jinja2.sandbox

from vdiff_grpc.engine.constraints.calls import CLOSE, OPEN
from vdiff_grpc.engine.prompt_types import ChatMessage, Tool, ToolCall

_PROBE = Tool("probe_it")
_CALL = ToolCall("call_1", _PROBE.name, '{"x": 1}')
_WRITTEN = f'{OPEN}\n{{"name": "{_PROBE.name}", "arguments": {{"x": 1}}}}\n{CLOSE}'
_INSTRUCTION = """\
You can call functions. A call is one line: {"name": NAME, "arguments": ARGUMENTS}. The functions:
"""


class ChatTemplate:
    """has_tools: it tells the model of tools. writes_calls: with each call between OPEN and CLOSE."""

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        """Raises jinja2.TemplateError."""
        self._template = _compiled(source)
        self._specials = specials
        user = ChatMessage("user", "?")
        called = ChatMessage("assistant", "", (_CALL,))
        told, untold = self._tried([user], [_PROBE]), self._tried([user], [])
        self.has_tools = _PROBE.name in told and _PROBE.name not in untold
        self.writes_calls = self.has_tools and _WRITTEN in self._tried([user, called], [])

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """Up to where the answer begins. tools: what the model is told of.

        Raises ValueError with the template's words when it refuses the conversation.
        """
        messages = _named(messages)
        try:
            if not self.has_tools:
                messages, tools = spelled_out(messages, tools), ()
            return self._rendered(messages, tools)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses it: {error}") from error
        except RecursionError as error:
            raise ValueError("tools or arguments are nested too deeply") from error

    def _rendered(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        given = {"tools": [_told(tool) for tool in tools]} if tools else {}
        return self._template.render(
            messages=_turns(messages), add_generation_prompt=True, **self._specials, **given
        )

    def _tried(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        try:
            return self._rendered(messages, tools)
        except Exception:  # a template may do anything with what it does not know
            return ""


def spelled_out(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """The conversation without tools in it: they are told by its system's message, calls are text
    of the assistant's, what tools have returned is said by the user."""
    spelled: list[ChatMessage] = []
    was_tool = False
    for message in messages:
        if message.role == "tool":
            said = f"{message.name}: {message.content}" if message.name else message.content
            if was_tool:
                said = f"{spelled.pop().content}\n{said}"
            spelled.append(ChatMessage("user", said))
        else:
            calls = [_line(call) for call in message.tool_calls]
            said = "\n".join(([message.content] if message.content else []) + calls)
            spelled.append(ChatMessage(message.role, said))
        was_tool = message.role == "tool"
    if tools:
        said = _INSTRUCTION + "\n".join(_dumped(_told(tool)["function"]) for tool in tools)
        if spelled and spelled[0].role == "system":
            said = f"{spelled.pop(0).content}\n\n{said}"
        spelled.insert(0, ChatMessage("system", said))
    return spelled


def _named(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """With the names of tools, which templates want, where only their calls' ids are given."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        replace(message, name=names.get(message.tool_call_id, ""))
        if message.role == "tool" and not message.name
        else message
        for message in messages
    ]


def _turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """As templates know them: without keys that say nothing, arguments as objects."""
    turns = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
        if message.name:
            turn["name"] = message.name
        turns.append(turn)
    return turns


def _told(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    schema = tool.parameters or '{"type": "object", "properties": {}}'
    function["parameters"] = json.loads(schema)
    return {"type": "function", "function": function}


def _line(call: ToolCall) -> str:
    return _dumped({"name": call.name, "arguments": json.loads(call.arguments)})


def _dumped(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _compiled(source: str) -> jinja2.Template:
    """In the environment that chat templates are written for (transformers 5)."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _dumped
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
