"""Calls of tools in the chat API's replies: pure, no IO."""

from __future__ import annotations

from collections.abc import Iterable

from . import openai_replies as openai
from .calls import CallReader, Piece


def message(calls: CallReader | None, text: str) -> openai.AssistantMessage:
    """Of a whole answer; calls: nothing read yet, None where there are none."""
    if calls is None:
        return openai.AssistantMessage("assistant", text)
    calls.read(text)
    if not calls.calls:
        return openai.AssistantMessage("assistant", calls.text)
    told = [
        openai.ToolCall(call.id, openai.CalledFunction(call.name, call.arguments))
        for call in calls.calls
    ]
    return openai.AssistantMessage("assistant", calls.text or None, tool_calls=told)


def deltas(calls: CallReader, pieces: Iterable[Piece]) -> list[openai.Delta]:
    deltas = []
    for piece in pieces:
        if piece.call is None:
            deltas.append(openai.Delta(content=piece.text))
            continue
        function = openai.DeltaFunction(arguments=piece.text)
        call = openai.DeltaCall(piece.call, function)
        if piece.begins:
            begun = calls.calls[piece.call]
            function = openai.DeltaFunction(begun.name)
            call = openai.DeltaCall(piece.call, function, begun.id, "function")
        deltas.append(openai.Delta(tool_calls=[call]))
    return deltas
