"""From the contract's replies to those of the Responses API: pure, no IO."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vdiff_grpc import v1

from . import canvas, replies, sse
from . import openai_replies as openai
from . import response_replies as out
from .convert import Job
from .errors import ErrorReply, internal
from .formats import used_format
from .openai_responses import ResponseRequest
from .response_replies import ResponseEvent


def response(job: Job, answers: Sequence[v1.GenerateResponse]) -> out.Response:
    (answer,) = answers
    (output,) = answer.outputs
    head = _Head.make(job, answer.model, answer.resolved)
    text = out.OutputText(output.text, logprobs=_logprobs(job, output.tokens))
    return head.ended(text, output.end, answer.usage, answer.metrics)


class ResponseEventStream:
    """Turns the events of the one RPC into OpenAI's; apis.ReplyStream."""

    encode = staticmethod(sse.encode_named)
    done = b""  # response.completed or its like is the last event

    def __init__(self, job: Job) -> None:
        self._job = job
        self._num_events = 0
        self._texts: list[str] = []
        self._logprobs: list[openai.TokenLogprob] = []
        self._finished: v1.Finished | None = None

    def start(self, started: Sequence[v1.Started]) -> list[ResponseEvent]:
        (first,) = started
        self._head = head = _Head.make(self._job, first.model, first.resolved)
        events: list[ResponseEvent] = [
            out.ResponseCreated(sequence_number=self._next(), response=head.response()),
            out.ResponseInProgress(sequence_number=self._next(), response=head.response()),
            out.OutputItemAdded(sequence_number=self._next(), item=head.item("in_progress", [])),
            out.ContentPartAdded(
                sequence_number=self._next(), item_id=head.item_id, part=out.OutputText("")
            ),
        ]
        if self._job.diffusing:
            events.append(self._diffusion(canvas.start(0, first.layout)))
        return events

    def event(self, prompt_index: int, event: v1.StreamGenerateResponse) -> list[ResponseEvent]:
        match event.WhichOneof("event"):
            case "committed":
                committed = event.committed
                logprobs = _logprobs(self._job, committed.tokens)
                if not committed.text and not logprobs:
                    return []
                self._texts.append(committed.text)
                self._logprobs += logprobs
                return [
                    out.OutputTextDelta(
                        sequence_number=self._next(),
                        item_id=self._head.item_id,
                        delta=committed.text,
                        logprobs=logprobs,
                    )
                ]
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
        head = self._head
        text, logprobs = "".join(self._texts), self._logprobs
        part = out.OutputText(text, logprobs=logprobs)
        whole = head.ended(part, end, self._finished.usage, self._finished.metrics)
        events: list[ResponseEvent] = []
        if self._job.diffusing:
            events.append(self._diffusion(openai.DiffusionEnd(0, end.seed, end.forward_passes)))
        events += [
            out.OutputTextDone(
                sequence_number=self._next(), item_id=head.item_id, text=text, logprobs=logprobs
            ),
            out.ContentPartDone(sequence_number=self._next(), item_id=head.item_id, part=part),
            out.OutputItemDone(sequence_number=self._next(), item=whole.output[0]),
        ]
        last = out.ResponseCompleted if whole.status == "completed" else out.ResponseIncomplete
        events.append(last(sequence_number=self._next(), response=whole))
        return events

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

    def item(
        self, status: Literal["in_progress", "completed", "incomplete"], text: list[out.OutputText]
    ) -> out.OutputMessage:
        return out.OutputMessage(self.item_id, status, text)

    def ended(
        self, text: out.OutputText, end: v1.OutputEnd, usage: v1.Usage, metrics: v1.Metrics
    ) -> out.Response:
        given, made = usage.prompt_tokens, usage.completion_tokens
        stopped = replies.finish_reason(end) == "stop"
        status: Literal["completed", "incomplete"] = "completed" if stopped else "incomplete"
        return self.response(
            status,
            output=[self.item(status, [text])],
            incomplete_details=None if stopped else out.IncompleteDetails("max_output_tokens"),
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
        output: Sequence[out.OutputMessage] = (),
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
            top_logprobs=request.top_logprobs or 0,
            top_p=sampling.top_p,
            usage=usage,
        )


def _logprobs(job: Job, tokens: v1.Tokens) -> list[openai.TokenLogprob]:
    told = replies.chat_logprobs(job, tokens)
    return [] if told is None else told.content
