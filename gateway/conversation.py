"""From the messages of OpenAI's two APIs to the contract's conversation: pure functions, no IO.

What they are given has passed refusals.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UnsetType

from vdiff_grpc import v1

from .openai import ChatMessage, ContentPart
from .openai_responses import InputItem, InputPart, ResultPart

_ROLES = {
    "system": v1.ROLE_SYSTEM,
    "developer": v1.ROLE_SYSTEM,
    "user": v1.ROLE_USER,
    "assistant": v1.ROLE_ASSISTANT,
    "tool": v1.ROLE_TOOL,
}


def add_message(chat: v1.ChatInput, message: ChatMessage) -> None:
    """Chat's."""
    added = chat.messages.add(role=_ROLES[message.role], content=_text(message.content or ""))
    if message.role == "tool":
        added.tool_call_id = message.tool_call_id or ""
    for call in message.tool_calls or ():
        if not isinstance(call.function, UnsetType):
            function = call.function
            added.tool_calls.add(id=call.id, name=function.name, arguments=function.arguments)


def add_item(chat: v1.ChatInput, item: InputItem) -> None:
    """The responses API's. Calls of one answer are items of their own there, and one message here."""
    match item.type:
        case "function_call":
            if not chat.messages or chat.messages[-1].role != v1.ROLE_ASSISTANT:
                chat.messages.add(role=v1.ROLE_ASSISTANT)
            chat.messages[-1].tool_calls.add(
                id=str(item.call_id), name=str(item.name), arguments=str(item.arguments)
            )
        case "function_call_output":
            output = _text(item.output or "")
            chat.messages.add(role=v1.ROLE_TOOL, content=output, tool_call_id=str(item.call_id))
        case _:
            chat.messages.add(role=_ROLES[str(item.role)], content=_text(item.content or ""))


def _text(content: str | Iterable[ContentPart | InputPart | ResultPart] | UnsetType) -> str:
    if isinstance(content, str | UnsetType):
        return content or ""
    return "".join(part.text for part in content if isinstance(part.text, str))
