"""The APIs by which text is asked for, one object each: how it is read and how it is answered.

Knows neither HTTP nor gRPC's calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vdiff_grpc import v1

from . import convert, fim_replies, replies, response_stream
from .convert import Job
from .errors import ErrorReply


class ReplyStream(Protocol):
    """Turns the events of one HTTP request's RPCs into what its client is sent.

    `start` takes the first event of every RPC, `event` each further one; `finish` ends it, or
    `fail`. `done` follows `finish`, as bytes.
    """

    @property
    def done(self) -> bytes: ...

    def start(self, started: Sequence[v1.Started]) -> Sequence[Any]: ...

    def event(self, prompt_index: int, event: v1.StreamGenerateResponse) -> Sequence[Any]: ...

    def finish(self) -> Sequence[Any]: ...

    def fail(self, error: ErrorReply) -> Sequence[Any]: ...

    def encode(self, chunks: Sequence[Any], /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Api:
    """parse: a request's body; raises ApiError. reply: one answer per prompt, in their order."""

    parse: Callable[[bytes], Job]
    reply: Callable[[Job, Sequence[v1.GenerateResponse]], Any]
    stream: Callable[[Job], ReplyStream]


COMPLETIONS = Api(convert.parse_completion, replies.completion, replies.CompletionStream)
CHAT = Api(convert.parse_chat, replies.chat, replies.ChatStream)
FIM = Api(convert.parse_fim, fim_replies.fim, fim_replies.FimStream)
RESPONSES = Api(
    convert.parse_response, response_stream.response, response_stream.ResponseEventStream
)
