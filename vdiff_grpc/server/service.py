"""The contract's services: decode, delegate, encode. Knows no gRPC beyond the generated base.

Behind interceptors.CallInterceptor, which gives a Call in place of a context and turns what is
raised here into statuses. That Call is why each method differs from the generated base.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vdiff_grpc import telemetry, v1
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine import events, types
from vdiff_grpc.errors import ModelNotFoundError
from vdiff_grpc.server.async_engine import AsyncEngine
from vdiff_grpc.server.convert import replies, requests
from vdiff_grpc.server.interceptors import Call
from vdiff_grpc.server.request_stream import RequestStream
from vdiff_grpc.server.run import Origin

# Beyond this, decoding could hold up the event loop for more than a millisecond.
_LARGE_BYTES = 64 * 1024

_T = TypeVar("_T")

VERSION = metadata.version("vdiff-grpc")


class GenerationService(v1.GenerationServiceServicer):
    """Generates text."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: v1.GenerateRequest, call: Call
    ) -> v1.GenerateResponse:
        async with await self._submit(request.spec, call) as stream:
            finished = await stream.finished()
        note(call, stream, finished)
        return replies.generate_response(self._engine.info, stream.request, finished)

    async def StreamGenerate(  # type: ignore[override]  # noqa: N802
        self, request: v1.StreamGenerateRequest, call: Call
    ) -> AsyncIterator[v1.StreamGenerateResponse]:
        with requests.located("options"):
            granularity, stride = requests.stream_options(request.options)
        info, tokenizer = self._engine.info, self._engine.tokenizer
        async with await self._submit(request.spec, call, granularity, stride) as stream:
            told = not stream.request.hole_ranges
            if told:
                yield replies.started(info, stream.request, tokenizer)
            async for event in stream:
                if not told:  # the layout has been chosen, or never will be
                    told = True
                    yield replies.started(info, stream.request, tokenizer)
                if isinstance(event, events.LaidOut):
                    continue
                if isinstance(event, events.Finished):
                    note(call, stream, event)
                yield replies.stream_response(info, stream.request, event, tokenizer)

    async def CancelRequest(  # type: ignore[override]  # noqa: N802
        self, request: v1.CancelRequestRequest, call: Call
    ) -> v1.CancelRequestResponse:
        request_id = requests.cancelled_id(request)
        return v1.CancelRequestResponse(cancelled=self._engine.cancel(group(call), request_id))

    async def _submit(
        self,
        spec: v1.GenerationSpec,
        call: Call,
        granularity: types.Granularity = types.Granularity.NONE,
        stride: int = 1,
    ) -> RequestStream:
        call.model = spec.model or self._engine.names[0]
        if spec.HasField("chat"):
            call.operation = telemetry.CHAT
        _refuse_other_models(self._engine, spec.model)
        with requests.located("spec"):
            request = await converted(
                requests.request_of, spec, call.request_id, granularity, stride
            )
            return await self._engine.submit(
                request, call.deadline_ns, origin(call, is_named=bool(spec.request_id))
            )


class ModelService(v1.ModelServiceServicer):
    """Says what is served, and how it fares."""

    def __init__(self, engine: AsyncEngine, config: ServerConfig) -> None:
        self._engine = engine
        self._limits = replies.own_limits(config)
        self._start_time = Timestamp()
        self._start_time.GetCurrentTime()
        self._start_ns = time.monotonic_ns()

    async def GetModelInfo(  # type: ignore[override]  # noqa: N802
        self, request: v1.GetModelInfoRequest, call: Call
    ) -> v1.GetModelInfoResponse:
        _refuse_other_models(self._engine, request.model)
        engine = self._engine
        tokenizer = engine.tokenizer
        response = replies.model_info_response(
            engine.info,
            engine.names,
            engine.limits,
            engine.defaults,
            has_tokenizer=tokenizer is not None,
            has_chat_template=tokenizer is not None and tokenizer.has_chat_template,
            supports_tools=tokenizer is not None and tokenizer.writes_calls,
        )
        response.limits.MergeFrom(self._limits)
        return response

    async def GetServerInfo(  # type: ignore[override]  # noqa: N802
        self, request: v1.GetServerInfoRequest, call: Call
    ) -> v1.GetServerInfoResponse:
        engine = self._engine
        all_used, inspects = engine.runs.usage.callers, call.may("inspect")
        own = {call.caller: all_used[call.caller]} if call.caller in all_used else {}
        return v1.GetServerInfoResponse(
            version=VERSION,
            state=replies.engine_state(engine.state, draining=engine.leaving),
            state_detail=engine.state_detail,
            start_time=self._start_time,
            uptime=replies.duration((time.monotonic_ns() - self._start_ns) / 1e9),
            device=engine.device,
            dtype=engine.dtype,
            model=engine.names[0],
            statistics=replies.statistics(engine.statistics, engine.runs.num_refused)
            if inspects
            else None,
            usage=replies.usage(all_used if inspects else own),
            engine_restarts=engine.num_restarts,
        )

    async def CountTokens(  # type: ignore[override]  # noqa: N802
        self, request: v1.CountTokensRequest, call: Call
    ) -> v1.CountTokensResponse:
        _refuse_other_models(self._engine, request.model)
        prompt = await converted(requests.prompt_of, request)
        ids, spans = await self._engine.encode(prompt)
        return replies.count_tokens_response(ids, spans)


def group(call: Call) -> str:
    """Who shares request ids and limits: a key, or without keys an address."""
    return call.caller or call.peer.rpartition(":")[0]


def origin(call: Call, *, is_named: bool) -> Origin:
    def charge(request: types.ResolvedRequest) -> None:
        generated = request.num_rows * request.params.max_new_tokens
        call.allowance.charge(request.num_prompt_tokens + generated)

    trace = call.trace
    on_mark = trace.note if trace is not None and trace.place.is_sampled else None
    return Origin(
        call.caller,
        group(call),
        is_named,
        charge,
        call.allowance.settle,
        on_mark,
        call.min_priority,
        call.latency_budget_s,
    )


async def converted(convert: Callable[..., _T], message: Message, *more: object) -> _T:
    """Off the event loop when the message is large."""
    if message.ByteSize() > _LARGE_BYTES:
        return await asyncio.to_thread(convert, message, *more)
    return convert(message, *more)


def _refuse_other_models(engine: AsyncEngine, model: str) -> None:
    if model and model not in engine.names:
        served = ", ".join(engine.names)
        raise ModelNotFoundError(f"model ({model[:128]!r}) is not served here; served: {served}")


def note(call: Call, stream: RequestStream, finished: events.Finished) -> None:
    """What the log line and the metrics say of a finished request."""
    outputs = finished.outputs
    call.tokens, call.forwards = finished.completion_tokens, finished.forward_passes
    call.queue_ms = round(finished.queue_time_ns / 1e6, 2)
    if not stream.is_replay:
        call.finished, call.prompt_tokens = finished, stream.request.num_prompt_tokens
    call.reason = ",".join(sorted({output.finish_reason.value for output in outputs}))
