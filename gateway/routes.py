"""The gateway's endpoints: read the request, ask the server, answer. Objects are made elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vdiff_grpc import v1
from vdiff_grpc.tracing import Tracer

from . import apis, model_replies, sse
from .apis import Api, ReplyStream
from .convert import Job
from .errors import ApiError, ClientGoneError, from_rpc, internal, unknown_url
from .exchange import Exchange, OpenExchanges
from .metrics import GatewayMetrics
from .middleware import client_left, rpc_metadata
from .openai_replies import ENCODER
from .upstream import Metadata, Upstream

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# A client that stalls must not hold its place for ever.
_BODY_TIMEOUT_S = 60
_MAX_CALLS = 32  # of one request's list of prompts
_SHUTTING_DOWN = "the gateway is shutting down"


@dataclass(slots=True)
class Gate:
    """What the endpoints share: the server behind them and the exchanges that are open."""

    upstream: Upstream
    open_exchanges: OpenExchanges
    metrics: GatewayMetrics
    tracer: Tracer | None = None  # where spans are exported
    draining: bool = False


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return ENCODER.encode(content)


class GenerationEndpoint:
    """POST of an API, as a plain ASGI application.

    A client that leaves cancels the RPC, streamed or not.
    """

    def __init__(self, gate: Gate, api: Api) -> None:
        self._gate = gate
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            job = self._api.parse(await _body(receive))
            async with Exchange(receive, self._gate.open_exchanges) as exchange:
                if job.stream:
                    await self._stream(job, exchange, rpc_metadata(scope), send)
                    return
                reply = await exchange.run(self._generate(job, rpc_metadata(scope)))
            await _send_json(reply, send)
        except ClientGoneError:
            client_left(scope)

    async def _generate(self, job: Job, metadata: Metadata) -> Any:
        upstream = self._gate.upstream

        # A long list takes its turn; all at once it could be more than the server has places for.
        at_once = asyncio.Semaphore(_MAX_CALLS)

        async def ask(prompt_index: int, spec: v1.GenerationSpec) -> v1.GenerateResponse:
            request = v1.GenerateRequest(spec=spec)

            async def attempt(timeout_s: float | None) -> v1.GenerateResponse:
                reply: v1.GenerateResponse = await upstream.generation.Generate(
                    request, timeout=timeout_s, metadata=metadata
                )
                return reply

            try:
                async with at_once:
                    return await upstream.retries.call(attempt)
            except grpc.aio.AioRpcError as error:
                raise self._api_error(error, job, prompt_index) from None

        answers = await _all([ask(i, spec) for i, spec in enumerate(job.specs)])
        return self._api.reply(job, answers)

    async def _stream(self, job: Job, exchange: Exchange, metadata: Metadata, send: Send) -> None:
        """A refusal is an HTTP status; once the stream has begun an error is an event."""
        upstream = self._gate.upstream
        calls: dict[int, Any] = {}

        async def begin(prompt_index: int, spec: v1.GenerationSpec) -> v1.Started:
            request = v1.StreamGenerateRequest(spec=spec, options=job.stream_options())

            async def attempt(timeout_s: float | None) -> v1.Started:
                call = calls[prompt_index] = upstream.generation.StreamGenerate(
                    request, timeout=timeout_s, metadata=metadata
                )
                return _started(await call.read())

            try:
                return await upstream.retries.call(attempt)
            except grpc.aio.AioRpcError as error:
                raise self._api_error(error, job, prompt_index) from None

        chunks = self._api.stream(job)
        try:
            started = await exchange.run(_all([begin(i, spec) for i, spec in enumerate(job.specs)]))
            await send({"type": "http.response.start", "status": 200, "headers": list(sse.HEADERS)})
            await _write(send, chunks.encode(chunks.start(started)))
            try:
                await exchange.run(self._relay(calls, job, chunks, send))
                ending = chunks.encode(chunks.finish()) + chunks.done
            except ApiError as error:
                ending = chunks.encode(chunks.fail(error.reply))
            except ClientGoneError:
                raise
            except Exception:
                _log.exception("unhandled error in a stream")
                ending = chunks.encode(chunks.fail(internal().reply))
            await send({"type": "http.response.body", "body": ending})
        finally:
            for call in calls.values():
                call.cancel()

    async def _relay(
        self, calls: dict[int, Any], job: Job, chunks: ReplyStream, send: Send
    ) -> None:
        """Writes every event as it comes; what came while a write was under way is written at once."""
        outbox = sse.Outbox()

        async def read(prompt_index: int, call: Any) -> None:
            try:
                while (event := await call.read()) is not grpc.aio.EOF:
                    data = chunks.encode(chunks.event(prompt_index, event))
                    if data:
                        await outbox.put(data)
            except grpc.aio.AioRpcError as error:
                raise self._api_error(error, job, prompt_index) from None

        async def read_all() -> None:
            try:
                await _all([read(i, call) for i, call in calls.items()])
            finally:
                outbox.close()

        async def write() -> None:
            while data := await outbox.take():
                await _write(send, data)

        await _all([read_all(), write()])

    def _api_error(self, error: grpc.aio.AioRpcError, job: Job, prompt_index: int) -> ApiError:
        self._gate.metrics.upstream_failed(error.code().name)
        _log_failure(error)
        return from_rpc(error, lambda path: job.param(prompt_index, path))


async def _body(receive: Receive) -> bytes:
    """Raises ClientGoneError."""
    parts = []
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(
            408, f"the request body did not come within {_BODY_TIMEOUT_S} s", code="body_timeout"
        ) from None


async def _send_json(reply: Any, send: Send) -> None:
    body = ENCODER.encode(reply)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _started(event: Any) -> v1.Started:
    """The first event, which says the request was admitted."""
    if event is grpc.aio.EOF or event.WhichOneof("event") != "started":
        _log.error("the server's stream did not begin with `started`")
        raise internal()
    started: v1.Started = event.started
    return started


async def _all(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results, or the first error; the others are cancelled then."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _write(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})


def _log_failure(error: grpc.aio.AioRpcError) -> None:
    # What a client is told of these is less than what was said.
    if error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ):
        fields = {"code": error.code().name, "details": error.details()}
        _log.warning("the server's call failed", extra={"fields": fields})


class InfoEndpoints:
    """Models, health and version."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def models(self, request: Request) -> Response:
        try:
            info, server = await self._gate.upstream.info("", rpc_metadata(request.scope))
        except grpc.aio.AioRpcError as error:
            raise self._api_error(error) from None
        return Json(model_replies.models(info, server))

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if not name:
            raise unknown_url(f"GET {request.url.path}")
        try:
            info, server = await self._gate.upstream.info(name, rpc_metadata(request.scope))
        except grpc.aio.AioRpcError as error:
            raise self._api_error(error) from None
        return Json(model_replies.model(info, server, name))

    async def live(self, request: Request) -> Response:
        """The event loop answers: that is all this says."""
        return Json({"status": "ok"})

    async def health(self, request: Request) -> Response:
        return await self._readiness()

    async def ready(self, request: Request) -> Response:
        return await self._readiness()

    async def version(self, request: Request) -> Response:
        try:
            server = (await self._gate.upstream.server_info(rpc_metadata(request.scope))).version
        except grpc.aio.AioRpcError:
            server = None
        return Json({"version": version("vdiff-grpc"), "server_version": server})

    def _api_error(self, error: grpc.aio.AioRpcError) -> ApiError:
        self._gate.metrics.upstream_failed(error.code().name)
        _log_failure(error)
        return from_rpc(error)

    async def _readiness(self) -> Response:
        draining = self._gate.draining
        reason = _SHUTTING_DOWN if draining else await self._gate.upstream.why_not_serving()
        if reason is None:
            return Json({"status": "ok"})
        return Json({"status": "unavailable", "reason": reason}, status_code=503)


class NothingStored:
    """Whatever asks for an earlier response: there is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["response_id"]
        raise ApiError(
            404, f"no response {name[:80]!r}: responses are not stored here", code="not_found"
        )


def completions(gate: Gate) -> GenerationEndpoint:
    return GenerationEndpoint(gate, apis.COMPLETIONS)


def chat_completions(gate: Gate) -> GenerationEndpoint:
    return GenerationEndpoint(gate, apis.CHAT)


def fim_completions(gate: Gate) -> GenerationEndpoint:
    return GenerationEndpoint(gate, apis.FIM)


def responses(gate: Gate) -> GenerationEndpoint:
    return GenerationEndpoint(gate, apis.RESPONSES)
