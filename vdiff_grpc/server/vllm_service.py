"""vLLM's gRPC contract over the same engine, for routers that speak it. Decode, delegate, encode.

Behind the interceptors as the services of our own contract are.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import io
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from vdiff_grpc import vllm
from vdiff_grpc.engine import events
from vdiff_grpc.errors import FieldViolation, InvalidRequestError
from vdiff_grpc.server import service
from vdiff_grpc.server.async_engine import AsyncEngine
from vdiff_grpc.server.convert import vllm_replies, vllm_requests
from vdiff_grpc.server.interceptors import Call

NAME = vllm.vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
_PIECE_BYTES = 64 * 1024


class VllmEngine(vllm.VllmEngineServicer):
    """Generates, and says what a router wants to know of a server."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._start_ns = time.monotonic_ns()
        self._tokenizer = b""
        self._zipping = asyncio.Lock()

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: vllm.GenerateRequest, call: Call
    ) -> AsyncIterator[vllm.GenerateResponse]:
        engine = self._engine
        call.model = engine.names[0]
        with vllm_requests.renamed():
            asked = await service.converted(vllm_requests.request_of, request, call.request_id)
            stream = await engine.submit(
                asked, call.deadline_ns, service.origin(call, is_named=False)
            )
        replies = vllm_replies.Replies(
            stream.request,
            engine.tokenizer,
            streams=request.stream,
            with_logprobs=request.sampling_params.HasField("logprobs"),
        )
        async with stream:
            async for event in stream:
                if isinstance(event, events.Finished):
                    service.note(call, stream, event)
                for reply in replies.of(event):
                    yield reply

    async def HealthCheck(  # type: ignore[override]  # noqa: N802
        self, request: vllm.HealthCheckRequest, call: Call
    ) -> vllm.HealthCheckResponse:
        engine = self._engine
        message = "draining" if engine.leaving else engine.state.value
        return vllm.HealthCheckResponse(healthy=engine.ready, message=message)

    async def Abort(  # type: ignore[override]  # noqa: N802
        self, request: vllm.AbortRequest, call: Call
    ) -> vllm.AbortResponse:
        for request_id in vllm_requests.aborted_ids(request):
            self._engine.cancel(service.group(call), request_id)
        return vllm.AbortResponse()

    async def GetModelInfo(  # type: ignore[override]  # noqa: N802
        self, request: vllm.GetModelInfoRequest, call: Call
    ) -> vllm.GetModelInfoResponse:
        return vllm_replies.model_info(self._engine.info, self._engine.limits)

    async def GetServerInfo(  # type: ignore[override]  # noqa: N802
        self, request: vllm.GetServerInfoRequest, call: Call
    ) -> vllm.GetServerInfoResponse:
        engine = self._engine
        return vllm.GetServerInfoResponse(
            active_requests=engine.runs.num_open if call.may("inspect") else 0,
            is_paused=engine.leaving,
            uptime_seconds=(time.monotonic_ns() - self._start_ns) / 1e9,
            server_type="vdiff-grpc",
            data_parallel_size=1,
            model_dtype=engine.dtype,
            max_num_seqs=engine.limits.max_running_rows,
        )

    async def GetLoads(  # type: ignore[override]  # noqa: N802
        self, request: vllm.GetLoadsRequest, call: Call
    ) -> vllm.GetLoadsResponse:
        vllm_requests.refuse_other_ranks("dp_rank", request.dp_rank)
        return vllm_replies.loads(
            datetime.datetime.now(datetime.UTC).isoformat(),
            service.VERSION,
            self._engine.statistics,
            self._engine.limits.max_running_rows,
        )

    async def GetTokenizer(  # type: ignore[override]  # noqa: N802
        self, request: vllm.GetTokenizerRequest, call: Call
    ) -> AsyncIterator[vllm.GetTokenizerChunk]:
        info = self._engine.info
        if self._engine.tokenizer is None:
            what = f"the model {info.name} has no tokenizer"
            raise InvalidRequestError([FieldViolation("", what)])
        async with self._zipping:
            if not self._tokenizer:
                self._tokenizer = await asyncio.to_thread(_zipped, Path(info.path))
        data = self._tokenizer
        digest = hashlib.sha256(data).hexdigest()
        for begin in range(0, len(data), _PIECE_BYTES):
            end = begin + _PIECE_BYTES
            yield vllm.GetTokenizerChunk(
                data=data[begin:end], sha256=digest if end >= len(data) else ""
            )


def _zipped(folder: Path) -> bytes:
    """The same bytes from every replica: without the files' times."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                entry = zipfile.ZipInfo(name)
                files.writestr(entry, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return archive.getvalue()
