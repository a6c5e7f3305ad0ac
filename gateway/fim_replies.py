"""Replies of /v1/fim/completions: chat's, with the text once more where completions have it.

Two kinds of clients call this URL: Mistral's read `message.content` and `delta.content`,
Inception's read `text`. Each finds its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from vdiff_grpc import v1

from . import replies
from .convert import Job
from .openai_replies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    FinishReason,
    Usage,
)


class FimChoice(ChatChoice, frozen=True, kw_only=True):
    """`text` is `message.content`."""

    text: str


class FimCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[FimChoice]
    usage: Usage


class FimChunkChoice(ChatChunkChoice, frozen=True, kw_only=True):
    """`text` is `delta.content`, or empty."""

    text: str


class FimChunk(ChatChunk, frozen=True):
    choices: Sequence[FimChunkChoice]


def fim(job: Job, answers: Sequence[v1.GenerateResponse]) -> FimCompletion:
    chat = replies.chat(job, answers)
    choices = [
        FimChoice(
            choice.index,
            choice.message,
            choice.finish_reason,
            choice.logprobs,
            choice.diffusion,
            text=choice.message.content or "",
        )
        for choice in chat.choices
    ]
    return FimCompletion(
        chat.id,
        chat.object,
        chat.created,
        chat.model,
        chat.system_fingerprint,
        choices,
        chat.usage,
    )


class FimStream(replies.ChatStream):
    chunk_type = FimChunk

    def _made(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatChunkChoice:
        text = delta.content if isinstance(delta.content, str) else ""
        return FimChunkChoice(index, delta, reason, logprobs, text=text)
