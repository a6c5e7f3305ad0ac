"""From the contract's replies to those of the Responses API: pure, no IO."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from vdiff_grpc import v1

from . import canvas, replies, sse
from . import openai_replies as openai
from . import response_replies as out
from .calls import Call, Piece
from .convert import Job
from .errors import ErrorReply, internal
from .formats import used_format
from .openai_responses import ResponseRequest
from .response_replies import ResponseEvent

_Status = Literal["in_progress", "completed", "incomplete"]


def response(job: Job, answers: Sequence[v1.GenerateResponse]) -> out.Response:
    (answer,) = answers
    (output,) = answer.outputs
    head = _Head.make(job, answer.model, answer.resolved)
    calls, text = job.calls(), output.text
    if calls is not None:
        calls.read(text)
        text = calls.text
    offsets = output.tokens.text_offsets
    told = _logprobs(job, output.tokens)
    logprobs = [one for at, one in zip(offsets, told, strict=False) if at < len(text) or not calls]
    items: list[out.OutputItem] = []
    if text or calls is None or not calls.calls:
        content = out.OutputText(text, logprobs=logprobs)
        is_whole = calls is not None and calls.calls  # calls come after it
        items.append(head.item("completed" if is_whole else _ended(output.end), [content]))
    for number, call in enumerate(calls.calls if calls else ()):
        items.append(head.call(number, call))
    return head.ended(items, output.end, answer.usage, answer.metrics)


class ResponseEventStream:
    """Turns the events of the one RPC into OpenAI's; apis.ReplyStream.

    Where there may be calls, a message is begun when there is text of it.
    """

    encode = staticmethod(sse.encode_named)
    done = b""  # response.completed or its like is the last event

    def __init__(self, job: Job) -> None:
        self._job = job
        self._num_events = 0
        self._calls = job.calls()
        self._text = ""
        self._is_open = False  # the message
        self._items: list[out.OutputItem] = []
        self._logprobs: list[openai.TokenLogprob] = []
        # by where its text begins, which is not known yet to be a message's
        self._waiting: list[tuple[int, openai.TokenLogprob]] = []
        self._finished: v1.Finished | None = None

    def start(self, started: Sequence[v1.Started]) -> list[ResponseEvent]:
        (first,) = started
        self._head = head = _Head.make(self._job, first.model, first.resolved)
        events: list[ResponseEvent] = [
            out.ResponseCreated(sequence_number=self._next(), response=head.response()),
            out.ResponseInProgress(sequence_number=self._next(), response=head.response()),
        ]
        # `diffusion` is told in deltas of the message: with it there is always one.
        if self._calls is None or self._job.diffusing:
            events += self._open()
        if self._job.diffusing:
            events.append(self._diffusion(canvas.start(0, first.layout)))
        return events

    def event(self, prompt_index: int, event: v1.StreamGenerateResponse) -> list[ResponseEvent]:
        match event.WhichOneof("event"):
            case "committed":
                committed = event.committed
                if self._calls is None:
                    return self._said(committed.text, _logprobs(self._job, committed.tokens))
                told = _logprobs(self._job, committed.tokens)
                self._waiting += zip(committed.tokens.text_offsets, told, strict=False)
                return self._pieces(self._calls.feed(committed.text))
            case "step_update":
                return [self._diffusion(canvas.step(0, event.step_update))]
            case "snapshot":
                return [self._diffusion(canvas.snapshot(0, event.snapshot))]
            case "finished":
                self._finished = event.finished
                return []
            case _:  # an event of a newer server
                return []

    def finish(self) -> list[ResponseEvent]:
        if self._finished is None:
            raise internal("the model server's stream did not end with `finished`")
        (end,) = self._finished.ends
        events: list[ResponseEvent] = []
        if self._job.diffusing:
            hurried = self._finished.metrics.hurried
            events.append(self._diffusion(canvas.end(0, end, hurried)))
        if self._calls is not None:
            events += self._pieces(self._calls.finish())
            if self._calls.calls and not self._calls.calls[-1].done:
                events += self._called(len(self._calls.calls) - 1)
        if not self._items and not self._is_open:
            events += self._open()
        events += self._close(_ended(end))
        whole = self._head.ended(self._items, end, self._finished.usage, self._finished.metrics)
        last = out.ResponseCompleted if whole.status == "completed" else out.ResponseIncomplete
        events.append(last(sequence_number=self._next(), response=whole))
        return events

    def _pieces(self, pieces: Sequence[Piece]) -> list[ResponseEvent]:
        assert self._calls is not None
        events: list[ResponseEvent] = []
        for piece in pieces:
            if piece.call is None:
                if not self._is_open:
                    events += self._open()
                events += self._said(piece.text, self._due(len(self._text) + len(piece.text)))
                continue
            call = self._calls.calls[piece.call]
            item = self._head.call(piece.call, call)
            if piece.begins:
                events += self._close("completed")
                begun = self._head.call(piece.call, Call(call.id, call.name), "in_progress")
                index = len(self._items)
                added = out.OutputItemAdded(
                    sequence_number=self._next(), output_index=index, item=begun
                )
                events.append(added)
                continue
            events.append(
                out.ArgumentsDelta(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=len(self._items),
                    delta=piece.text,
                )
            )
            if call.done:
                events += self._called(piece.call)
        return events

    def _called(self, number: int) -> list[ResponseEvent]:
        """A call that has ended, or is cut off."""
        assert self._calls is not None
        item = self._head.call(number, self._calls.calls[number])
        index = len(self._items)
        self._items.append(item)
        return [
            out.ArgumentsDone(
                sequence_number=self._next(),
                item_id=item.id,
                output_index=index,
                name=item.name,
                arguments=item.arguments,
            ),
            out.OutputItemDone(sequence_number=self._next(), output_index=index, item=item),
        ]

    def _due(self, length: int) -> list[openai.TokenLogprob]:
        """Of the message's first so many characters, those not told yet."""
        count = sum(offset < length for offset, _ in self._waiting)
        due, self._waiting = self._waiting[:count], self._waiting[count:]
        return [logprob for _, logprob in due]

    def _said(self, text: str, logprobs: list[openai.TokenLogprob]) -> list[ResponseEvent]:
        if not text and not logprobs:
            return []
        self._text += text
        self._logprobs += logprobs
        return [
            out.OutputTextDelta(
                sequence_number=self._next(),
                item_id=self._head.item_id,
                delta=text,
                logprobs=logprobs,
            )
        ]

    def _open(self) -> list[ResponseEvent]:
        self._is_open = True
        head = self._head
        return [
            out.OutputItemAdded(
                sequence_number=self._next(), output_index=0, item=head.item("in_progress", [])
            ),
            out.ContentPartAdded(
                sequence_number=self._next(), item_id=head.item_id, part=out.OutputText("")
            ),
        ]

    def _close(self, status: _Status) -> list[ResponseEvent]:
        if not self._is_open:
            return []
        self._is_open = False
        head, text, logprobs = self._head, self._text, self._logprobs
        part = out.OutputText(text, logprobs=logprobs)
        item = head.item(status, [part])
        self._items.append(item)
        return [
            out.OutputTextDone(
                sequence_number=self._next(), item_id=head.item_id, text=text, logprobs=logprobs
            ),
            out.ContentPartDone(sequence_number=self._next(), item_id=head.item_id, part=part),
            out.OutputItemDone(sequence_number=self._next(), output_index=0, item=item),
        ]

    def fail(self, error: ErrorReply) -> list[ResponseEvent]:
        told = error.error
        code: out.ResponseErrorCode = (
            "rate_limit_exceeded" if told.type == "rate_limit_error" else "server_error"
        )
        return [
            out.ResponseErrorEvent(
                sequence_number=self._next(),
                code=told.code,
                message=told.message,
                param=told.param,
                error=told,
            ),
            out.ResponseFailed(
                sequence_number=self._next(),
                response=self._head.response("failed", error=out.ResponseError(code, told.message)),
            ),
        ]

    def _diffusion(self, diffusion: openai.Diffusion) -> out.OutputTextDelta:
        # Not an event of a type of its own: Node's client throws at one that it does not know.
        return out.OutputTextDelta(
            sequence_number=self._next(),
            item_id=self._head.item_id,
            delta="",
            diffusion=diffusion,
        )

    def _next(self) -> int:
        self._num_events += 1
        return self._num_events - 1


@dataclass(frozen=True, slots=True)
class _Head:
    """What a response is from its beginning."""

    id: str
    item_id: str
    created_at: int
    model: str
    sampling: v1.SamplingParams
    request: ResponseRequest

    @classmethod
    def make(cls, job: Job, model: str, resolved: v1.ResolvedParams) -> _Head:
        assert isinstance(job.request, ResponseRequest)
        token = secrets.token_hex(24)
        return cls(
            f"resp_{token}",
            f"msg_{token}",
            int(time.time()),
            # As the client has it: clients compare.
            job.request.model or model,
            resolved.sampling,
            job.request,
        )

    def item(self, status: _Status, text: list[out.OutputText]) -> out.OutputMessage:
        return out.OutputMessage(self.item_id, status, text)

    def call(self, number: int, call: Call, status: _Status | None = None) -> out.FunctionCall:
        item_id = self.item_id.replace("msg_", "fc_") + str(number)
        status = status or ("completed" if call.done else "incomplete")
        return out.FunctionCall(item_id, status, call.id, call.name, call.arguments)

    def ended(
        self,
        output: Sequence[out.OutputItem],
        end: v1.OutputEnd,
        usage: v1.Usage,
        metrics: v1.Metrics,
    ) -> out.Response:
        given, made = usage.prompt_tokens, usage.completion_tokens
        status = _ended(end)
        return self.response(
            status,
            output=output,
            incomplete_details=None
            if status == "completed"
            else out.IncompleteDetails("max_output_tokens"),
            usage=out.ResponseUsage(
                given,
                made,
                given + made,
                out.InputTokensDetails(usage.shared_prompt_tokens),
                hurried=replies.told_hurried((metrics,)),
            ),
        )

    def response(
        self,
        status: out.ResponseStatus = "in_progress",
        *,
        output: Sequence[out.OutputItem] = (),
        error: out.ResponseError | None = None,
        incomplete_details: out.IncompleteDetails | None = None,
        usage: out.ResponseUsage | None = None,
    ) -> out.Response:
        request, sampling = self.request, self.sampling
        return out.Response(
            id=self.id,
            created_at=self.created_at,
            status=status,
            error=error,
            incomplete_details=incomplete_details,
            instructions=request.instructions,
            max_output_tokens=sampling.max_new_tokens,
            metadata=request.metadata or {},
            model=self.model,
            output=list(output),
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=sampling.temperature,
            text=out.TextSettings(
                used_format(None if request.text is None else request.text.format)
            ),
            tool_choice=request.tool_choice or "auto",
            tools=[structs.replace(tool, strict=True) for tool in request.tools or ()],
            top_logprobs=request.top_logprobs or 0,
            top_p=sampling.top_p,
            usage=usage,
        )


def _ended(end: v1.OutputEnd) -> Literal["completed", "incomplete"]:
    return "completed" if replies.finish_reason(end) == "stop" else "incomplete"


def _logprobs(job: Job, tokens: v1.Tokens) -> list[openai.TokenLogprob]:
    told = replies.chat_logprobs(job, tokens)
    return [] if told is None else told.content
