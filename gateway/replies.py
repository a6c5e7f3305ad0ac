"""From the contract's replies to OpenAI's: pure, no IO.

A unary reply is one function; a stream is an object that turns each event into chunks. Those of
the Responses API are in response_stream.py, those of fim in fim_replies.py.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from vdiff_grpc import v1

from . import call_replies, canvas, logprobs, sse
from . import openai_replies as openai
from .calls import CallReader
from .convert import Job
from .errors import ErrorReply
from .openai_replies import ChatChunk, CompletionChunk, FinishReason, Usage

_FINISH_REASONS: dict[int, FinishReason] = {
    v1.FINISH_REASON_STOP: "stop",
    v1.FINISH_REASON_LENGTH: "length",
    v1.FINISH_REASON_PARTIAL: "length",
}

Chunk = CompletionChunk | ChatChunk


def completion(job: Job, replies: Sequence[v1.GenerateResponse]) -> openai.Completion:
    """One reply per prompt, in their order."""
    head = _Head.make(job, "cmpl", replies[0])
    choices = [
        openai.CompletionChoice(
            index=base + output.index,
            text=echo + output.text,
            finish_reason=finish_reason(output.end),
            logprobs=_completion_logprobs(job, output.tokens),
            diffusion=_diffusion(job, base + output.index, output, reply.metrics),
            hole_texts=UNSET if job.names.holes is None else list(output.hole_texts),
        )
        for base, echo, reply in zip(_bases(replies), job.echoes, replies, strict=True)
        for output in reply.outputs
    ]
    return openai.Completion(
        head.id,
        "text_completion",
        head.created,
        head.model,
        head.system_fingerprint,
        choices,
        _usage(
            (reply.usage for reply in replies), told_hurried(reply.metrics for reply in replies)
        ),
    )


def chat(job: Job, replies: Sequence[v1.GenerateResponse]) -> openai.ChatCompletion:
    (reply,) = replies
    head = _Head.make(job, "chatcmpl", reply)
    choices = [
        openai.ChatChoice(
            index=output.index,
            message=(message := call_replies.message(job.calls(), output.text)),
            finish_reason=_chat_reason(output.end, bool(message.tool_calls)),
            logprobs=chat_logprobs(job, output.tokens),
            diffusion=_diffusion(job, output.index, output, reply.metrics),
        )
        for output in reply.outputs
    ]
    return openai.ChatCompletion(
        head.id,
        "chat.completion",
        head.created,
        head.model,
        head.system_fingerprint,
        choices,
        _usage((reply.usage,), told_hurried((reply.metrics,))),
    )


class ChunkStream(ABC):
    """Turns the events of one HTTP request's RPCs into chunks.

    `start` takes the first event of every RPC, `event` each further one, `finish` ends it, `fail`
    does so before its time.
    """

    id_prefix: str
    encode = staticmethod(sse.encode)
    done = sse.DONE

    def __init__(self, job: Job) -> None:
        self._job = job
        self._head = _Head("", 0, "", "")
        self._bases: list[int] = []
        self._usages: list[v1.Usage] = []
        self._metrics: list[v1.Metrics] = []
        # With include_usage OpenAI's chunks carry `usage: null` until the last.
        self._no_usage: UnsetType | None = None if job.include_usage else UNSET

    def start(self, started: Sequence[v1.Started]) -> list[Chunk]:
        self._head = _Head.make(self._job, self.id_prefix, started[0])
        chunks: list[Chunk] = []
        base = 0
        for one, echo in zip(started, self._job.echoes, strict=True):
            self._bases.append(base)
            for index in range(base, base + one.resolved.sampling.n):
                chunks += self._opening(index, echo)
                if self._job.diffusing:
                    chunks.append(self._silent(index, canvas.start(index, one.layout)))
            base += one.resolved.sampling.n
        return chunks

    def event(self, prompt_index: int, event: v1.StreamGenerateResponse) -> list[Chunk]:
        base = self._bases[prompt_index]
        match event.WhichOneof("event"):
            case "committed":
                committed = event.committed
                tokens = committed.tokens
                # A token may have no text of its own; its probability is told all the same.
                if not committed.text and (self._job.top_logprobs is None or not tokens.ids):
                    return []
                return self._text(base + committed.output_index, committed.text, tokens)
            case "step_update":
                index = base + event.step_update.output_index
                return [self._silent(index, canvas.step(index, event.step_update))]
            case "snapshot":
                index = base + event.snapshot.output_index
                return [self._silent(index, canvas.snapshot(index, event.snapshot))]
            case "finished":
                self._usages.append(event.finished.usage)
                self._metrics.append(event.finished.metrics)
                return [
                    chunk
                    for end in event.finished.ends
                    for chunk in self._ending(
                        base + end.index,
                        end,
                        canvas.end(base + end.index, end, event.finished.metrics.hurried)
                        if self._job.diffusing
                        else UNSET,
                    )
                ]
            case _:  # an event of a newer server
                return []

    def finish(self) -> list[Chunk]:
        usage = _usage(self._usages, told_hurried(self._metrics))
        return [self._usage_chunk(usage)] if self._job.include_usage else []

    def fail(self, error: ErrorReply) -> list[ErrorReply]:
        return [error]

    @abstractmethod
    def _opening(self, index: int, echo: str) -> list[Chunk]: ...

    @abstractmethod
    def _text(self, index: int, text: str, tokens: v1.Tokens) -> list[Chunk]: ...

    @abstractmethod
    def _silent(self, index: int, diffusion: openai.Diffusion) -> Chunk: ...

    @abstractmethod
    def _ending(
        self, index: int, end: v1.OutputEnd, diffusion: openai.Diffusion | UnsetType
    ) -> list[Chunk]: ...

    @abstractmethod
    def _usage_chunk(self, usage: Usage) -> Chunk: ...


class CompletionStream(ChunkStream):
    id_prefix = "cmpl"
    _hole_index: int | UnsetType = UNSET

    def event(self, prompt_index: int, event: v1.StreamGenerateResponse) -> list[Chunk]:
        if self._job.names.holes is not None:
            self._hole_index = event.committed.hole_index
        return super().event(prompt_index, event)

    def _opening(self, index: int, echo: str) -> list[Chunk]:
        return [self._chunk([openai.CompletionChoice(index, echo)], self._no_usage)] if echo else []

    def _text(self, index: int, text: str, tokens: v1.Tokens) -> list[Chunk]:
        probabilities = _completion_logprobs(self._job, tokens)
        choice = openai.CompletionChoice(
            index, text, None, probabilities, hole_index=self._hole_index
        )
        return [self._chunk([choice], self._no_usage)]

    def _silent(self, index: int, diffusion: openai.Diffusion) -> Chunk:
        return self._chunk([openai.CompletionChoice(index, "")], self._no_usage, diffusion)

    def _ending(
        self, index: int, end: v1.OutputEnd, diffusion: openai.Diffusion | UnsetType
    ) -> list[Chunk]:
        choice = openai.CompletionChoice(index, "", finish_reason(end))
        return [self._chunk([choice], self._no_usage, diffusion)]

    def _usage_chunk(self, usage: Usage) -> Chunk:
        return self._chunk([], usage)

    def _chunk(
        self,
        choices: list[openai.CompletionChoice],
        usage: Usage | UnsetType | None,
        diffusion: openai.Diffusion | UnsetType = UNSET,
    ) -> Chunk:
        head = self._head
        return CompletionChunk(
            head.id,
            "text_completion",
            head.created,
            head.model,
            head.system_fingerprint,
            choices,
            usage,
            diffusion,
        )


class ChatStream(ChunkStream):
    id_prefix = "chatcmpl"
    chunk_type: type[ChatChunk] = ChatChunk

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._calls: dict[int, CallReader] = {}  # by choice

    def _opening(self, index: int, echo: str) -> list[Chunk]:
        if (calls := self._job.calls()) is not None:
            self._calls[index] = calls
        content = "" if calls is None else None
        return [self._choice(index, openai.Delta("assistant", content))]

    def _text(self, index: int, text: str, tokens: v1.Tokens) -> list[Chunk]:
        calls = self._calls.get(index)
        deltas = (
            [openai.Delta(content=text)]
            if calls is None
            else call_replies.deltas(calls, calls.feed(text))
        )
        told = chat_logprobs(self._job, tokens)
        if not deltas and told is not None:
            deltas = [openai.Delta()]
        # the tokens' probabilities go with the first
        choices = [
            self._made(index, delta, None, None if number else told)
            for number, delta in enumerate(deltas)
        ]
        return [self._chunk([choice], self._no_usage, UNSET) for choice in choices]

    def _silent(self, index: int, diffusion: openai.Diffusion) -> Chunk:
        return self._choice(index, openai.Delta(), None, diffusion)

    def _ending(
        self, index: int, end: v1.OutputEnd, diffusion: openai.Diffusion | UnsetType
    ) -> list[Chunk]:
        calls = self._calls.get(index)
        rest = [] if calls is None else call_replies.deltas(calls, calls.finish())
        reason = _chat_reason(end, calls is not None and bool(calls.calls))
        return [
            *(self._choice(index, delta) for delta in rest),
            self._choice(index, openai.Delta(), reason, diffusion),
        ]

    def _usage_chunk(self, usage: Usage) -> Chunk:
        return self._chunk([], usage, UNSET)

    def _choice(
        self,
        index: int,
        delta: openai.Delta,
        reason: FinishReason | None = None,
        diffusion: openai.Diffusion | UnsetType = UNSET,
    ) -> Chunk:
        choice = self._made(index, delta, reason)
        return self._chunk([choice], self._no_usage, diffusion)

    def _made(
        self,
        index: int,
        delta: openai.Delta,
        reason: FinishReason | None,
        logprobs: openai.ChatLogprobs | None = None,
    ) -> openai.ChatChunkChoice:
        return openai.ChatChunkChoice(index, delta, reason, logprobs)

    def _chunk(
        self,
        choices: list[openai.ChatChunkChoice],
        usage: Usage | UnsetType | None,
        diffusion: openai.Diffusion | UnsetType,
    ) -> Chunk:
        head = self._head
        return self.chunk_type(
            head.id,
            "chat.completion.chunk",
            head.created,
            head.model,
            head.system_fingerprint,
            choices,
            usage,
            diffusion,
        )


# --- parts ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    """What all chunks of a reply share."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def make(cls, job: Job, prefix: str, reply: v1.GenerateResponse | v1.Started) -> _Head:
        """With the model's name as the client has it: clients compare."""
        return cls(
            f"{prefix}-{secrets.token_hex(14)}",
            int(time.time()),
            job.specs[0].model or reply.model,
            reply.model_revision,
        )


def _bases(replies: Sequence[v1.GenerateResponse]) -> list[int]:
    """The index of each prompt's first choice: choice i * n + j is answer j to prompt i."""
    bases = [0]
    for reply in replies[:-1]:
        bases.append(bases[-1] + len(reply.outputs))
    return bases


def finish_reason(end: v1.OutputEnd) -> FinishReason:
    return _FINISH_REASONS.get(end.finish_reason, "stop")


def _chat_reason(end: v1.OutputEnd, calls: bool) -> FinishReason:
    reason = finish_reason(end)
    return "tool_calls" if calls and reason == "stop" else reason


def _completion_logprobs(job: Job, tokens: v1.Tokens) -> openai.CompletionLogprobs | None:
    return None if job.top_logprobs is None else logprobs.of_completion(tokens)


def chat_logprobs(job: Job, tokens: v1.Tokens) -> openai.ChatLogprobs | None:
    return None if job.top_logprobs is None else logprobs.of_chat(tokens)


def _diffusion(
    job: Job, index: int, output: v1.Output, metrics: v1.Metrics
) -> openai.ChoiceDiffusion | UnsetType:
    told = job.diffusing or job.request.return_trajectory
    return canvas.of_choice(index, output, metrics.hurried) if told else UNSET


def told_hurried(metrics: Iterable[v1.Metrics]) -> Literal[True] | UnsetType:
    return True if any(one.hurried for one in metrics) else UNSET


def _usage(usages: Iterable[v1.Usage], hurried: Literal[True] | UnsetType) -> Usage:
    prompt = completion = shared = 0
    for usage in usages:
        prompt += usage.prompt_tokens
        completion += usage.completion_tokens
        shared += usage.shared_prompt_tokens
    details = openai.PromptTokensDetails(shared)
    return Usage(prompt, completion, prompt + completion, details, hurried)
