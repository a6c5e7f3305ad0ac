"""The engine as the event loop sees it: admission, one stream per request, counters.

Knows no gRPC: any transport may call `submit`. Everything runs on the event loop; validation,
which tokenises, runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vdiff_grpc.engine import validation
from vdiff_grpc.engine.messages import Abort, Add, StepReport
from vdiff_grpc.engine.models import registry
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import (
    EngineConfig,
    EngineLimits,
    EngineState,
    Failed,
    Finished,
    ModelInfo,
    Prompt,
    Request,
    SamplingParams,
    Span,
    Statistics,
)
from vdiff_grpc.errors import EngineUnavailableError, QueueFullError
from vdiff_grpc.server.request_stream import RequestStream
from vdiff_grpc.server.supervisor import EngineKind, Supervisor

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER_S = 30.0
_MAX_ENCODING = 64
_T = TypeVar("_T")


class AsyncEngine:
    """Between the event loop and the engine.

    configure: picklable; run first in the engine's process, to set up its logging.
    on_change: called when `ready` or `failed` may have changed.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        kind: EngineKind = "process",
        configure: Callable[[], None] | None = None,
        max_pending_events: int = 64,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.names = config.served_names
        self.num_refused = 0
        self._config = config
        self._max_pending_events = max_pending_events
        self._on_change = on_change
        self._supervisor = Supervisor(
            config,
            kind,
            configure=configure,
            on_step=self._stepped,
            on_lost=self._lost,
            on_change=on_change,
        )
        self._model: _Model | None = None
        self._leaving = False
        self._draining = False
        self._streams: dict[int, RequestStream] = {}
        self._next_key = 0
        self._outstanding_rows = 0
        self._num_encoding = 0
        self._former = Statistics()  # of engines that have ended
        self._present = Statistics()
        self._mean_service_s = 1.0
        self._validators = ThreadPoolExecutor(2, "validate")

    # --- life ---------------------------------------------------------------

    async def start(self) -> None:
        """Reads the model's description and starts the engine; returns before it is READY.

        Raises CheckpointError.
        """
        self._model = await asyncio.to_thread(_Model.read, self._config)
        await self._supervisor.start()

    def leave(self) -> None:
        """From now on not `ready`, so that callers go elsewhere; those who come are served."""
        self._leaving = True
        self._on_change()

    def drain(self) -> None:
        """From now on every new request is refused. Open ones go on."""
        self._draining = True
        self.leave()

    def end_open_requests(self, reason: str) -> None:
        """Ends every open stream with EngineUnavailableError."""
        for stream in list(self._streams.values()):
            self._supervisor.send(Abort(stream.key))
            self._end(stream, Failed(EngineUnavailableError(reason)))

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the engine for good. What is open ends with EngineUnavailableError."""
        self.drain()
        self.end_open_requests("the server has stopped")
        # An engine that still loads would not look at its commands in that time.
        await self._supervisor.stop(timeout_s if self.state is EngineState.READY else 0.0)
        self._validators.shutdown(wait=False, cancel_futures=True)

    # --- what it is ---------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.state is EngineState.READY and not self._leaving

    @property
    def leaving(self) -> bool:
        return self._leaving

    @property
    def failed(self) -> bool:
        """The engine could not be loaded at its first start: there is nothing to wait for."""
        return self._supervisor.failed

    @property
    def state(self) -> EngineState:
        return self._supervisor.state

    @property
    def state_detail(self) -> str:
        return self._supervisor.detail

    @property
    def device(self) -> str:
        return self._supervisor.device

    @property
    def dtype(self) -> str:
        return self._supervisor.dtype

    @property
    def info(self) -> ModelInfo:
        return self._known_model().info

    @property
    def limits(self) -> EngineLimits:
        return self._known_model().limits

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._known_model().tokenizer

    @property
    def defaults(self) -> SamplingParams:
        """What a request gets that says nothing, but for its seed."""
        return self._known_model().defaults

    @property
    def statistics(self) -> Statistics:
        """Counters since the server's start, engines that have ended included."""
        return _sum(self._former, self._present)

    # --- requests -----------------------------------------------------------

    async def submit(self, request: Request, deadline_ns: int | None = None) -> RequestStream:
        """Admits a request at once or refuses it at once; whoever gets the stream closes it.

        deadline_ns: time.monotonic_ns() at which the caller no longer waits.
        Raises InvalidRequestError, QueueFullError or EngineUnavailableError.
        """
        self._refuse_unless_ready()
        model = self._known_model()
        # One place is held meanwhile, so that the queue's limit bounds this work, too.
        self._reserve(1)
        try:
            resolved = await self._in_thread(
                validation.resolve, request, model.info, model.limits, model.tokenizer
            )
            self._refuse_unless_ready()
            self._reserve(resolved.params.n - 1)
        except BaseException:
            self._outstanding_rows -= 1
            raise
        if deadline_ns is not None:
            deadline_ns = min(deadline_ns, resolved.deadline_ns or deadline_ns)
            resolved = dataclasses.replace(resolved, deadline_ns=deadline_ns)
        self._next_key += 1
        stream = RequestStream(
            self._next_key, resolved, self._max_pending_events, self._reader_left
        )
        self._streams[stream.key] = stream
        self._supervisor.send(Add(stream.key, resolved))
        return stream

    async def encode(self, prompt: Prompt) -> tuple[list[int], list[Span]]:
        """A prompt's tokens, the mask id in a template's holes.

        Raises InvalidRequestError, or QueueFullError: it shares its threads with admission.
        """
        model = self._known_model()
        if self._num_encoding >= _MAX_ENCODING:
            raise QueueFullError(f"{_MAX_ENCODING} prompts are being counted already", 0.1)
        self._num_encoding += 1
        try:
            return await self._in_thread(
                validation.encode_prompt, prompt, model.info, model.tokenizer
            )
        finally:
            self._num_encoding -= 1

    # --- inside -------------------------------------------------------------

    def _known_model(self) -> _Model:
        if self._model is None:
            raise EngineUnavailableError("the model's description is still being read")
        return self._model

    def _refuse_unless_ready(self) -> None:
        if self._draining:
            raise EngineUnavailableError("the server is draining: it takes no new requests")
        if self.state is not EngineState.READY:
            detail = f": {self.state_detail}" if self.state_detail else ""
            raise EngineUnavailableError(
                f"the engine is not ready ({self.state.value}{detail})",
                self._supervisor.retry_after_s,
            )

    def _reserve(self, num_rows: int) -> None:
        running, waiting = self._config.max_running_rows, self._config.max_waiting_rows
        if self._outstanding_rows + num_rows > running + waiting:
            self.num_refused += 1
            raise QueueFullError(
                f"no place for {num_rows} more rows beside {self._outstanding_rows} "
                f"(max_running_rows {running} + max_waiting_rows {waiting})",
                self._retry_after_s(),
            )
        self._outstanding_rows += num_rows

    def _retry_after_s(self) -> float:
        """With all rows busy one ends about every mean / rows seconds."""
        next_end_s = self._mean_service_s / self._config.max_running_rows
        return min(_MAX_RETRY_AFTER_S, max(0.1, next_end_s))

    def _stepped(self, report: StepReport) -> None:
        self._present = report.statistics
        for key, event in report.events:
            stream = self._streams.get(key)
            if stream is None:
                continue  # its reader has left; the engine did not know yet
            if isinstance(event, Finished):
                service_s = (event.total_time_ns - event.queue_time_ns) / 1e9
                self._mean_service_s += 0.2 * (service_s - self._mean_service_s)
            if isinstance(event, Finished | Failed):
                self._end(stream, event)
            else:
                stream.push(event)

    def _end(self, stream: RequestStream, event: Finished | Failed) -> None:
        del self._streams[stream.key]
        self._outstanding_rows -= stream.request.params.n
        stream.push(event)

    def _reader_left(self, stream: RequestStream) -> None:
        if stream.key in self._streams:
            del self._streams[stream.key]
            self._outstanding_rows -= stream.request.params.n
            self._supervisor.send(Abort(stream.key))

    def _lost(self, reason: str) -> None:
        num_open = len(self._streams)
        ended = _sum(self._former, self._present)
        self._former = dataclasses.replace(
            ended,
            requests_failed=ended.requests_failed + num_open,
            running_rows=0,
            waiting_rows=0,
        )
        self._present = Statistics()
        retry_after_s = self._supervisor.retry_after_s
        for stream in list(self._streams.values()):
            error = EngineUnavailableError(f"engine process ended: {reason}", retry_after_s)
            self._end(stream, Failed(error))

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._validators, function, *arguments)


@dataclasses.dataclass(frozen=True, slots=True)
class _Model:
    """What is known of the model before its weights are loaded."""

    info: ModelInfo
    limits: EngineLimits
    tokenizer: Tokenizer | None
    defaults: SamplingParams

    @classmethod
    def read(cls, config: EngineConfig) -> _Model:
        name = config.served_names[0] if config.served_names else ""
        info = registry.describe(config.model_path, name, config.aux_model_path)
        limits = validation.limits_for(config, info)
        tokenizer = Tokenizer.load(config.model_path)
        return cls(info, limits, tokenizer, validation.defaults(info, limits))


def _sum(one: Statistics, other: Statistics) -> Statistics:
    return Statistics(
        *(
            getattr(one, counter.name) + getattr(other, counter.name)
            for counter in dataclasses.fields(Statistics)
        )
    )
