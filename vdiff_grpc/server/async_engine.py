"""The engine as the event loop sees it: admission, one stream per request, counters.

Knows no gRPC: any transport may call `submit`. Everything runs on the event loop; validation,
which tokenises, runs in threads of its own. Each request is a Run, which several calls may read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vdiff_grpc.engine import validation
from vdiff_grpc.engine.constraint_checks import must_build
from vdiff_grpc.engine.messages import StepReport, Timing
from vdiff_grpc.engine.prompt_types import Prompt
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import (
    EngineConfig,
    EngineLimits,
    EngineState,
    ModelInfo,
    Request,
    ResolvedRequest,
    SamplingParams,
    Span,
    Statistics,
)
from vdiff_grpc.errors import EngineUnavailableError, QueueFullError
from vdiff_grpc.server.request_stream import RequestStream
from vdiff_grpc.server.run import Origin
from vdiff_grpc.server.runs import Care, Runs
from vdiff_grpc.server.served_model import ServedModel, total
from vdiff_grpc.server.supervisor import EngineKind, Lost, Supervisor

logger = logging.getLogger(__name__)

_MAX_ENCODING = 64
_MAX_BUILDING = 16  # new constraints at once, two of which are built: each may take seconds
_ANYONE = Origin()
_NO_CARE = Care()
_T = TypeVar("_T")


class AsyncEngine:
    """Between the event loop and the engine.

    configure: picklable; run first in the engine's process, to set up its logging.
    on_change: called when `ready` or `failed` may have changed. on_step: after every step.
    """

    def __init__(
        self,
        config: EngineConfig,
        care: Care = _NO_CARE,
        *,
        kind: EngineKind = "process",
        configure: Callable[[], None] | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_step: Callable[[Timing], None] = lambda _: None,
    ) -> None:
        self.names = config.served_names
        self._config = config
        self._on_change = on_change
        self._on_step = on_step
        self._supervisor = Supervisor(
            config,
            kind,
            max_step_time_s=care.max_step_time_s,
            max_load_time_s=care.max_load_time_s,
            configure=configure,
            on_step=self._stepped,
            on_lost=self._lost,
            on_change=on_change,
        )
        self.runs = Runs(
            config, care, self._supervisor.send, self._resolve, self._refuse_unless_ready
        )
        self._model: ServedModel | None = None
        self._leaving = False
        self._draining = False
        self._num_encoding = self._num_building = 0
        self._former = Statistics()  # of engines that have ended
        self._present = Statistics()
        self._validators = ThreadPoolExecutor(2, "validate")
        self._builders = ThreadPoolExecutor(2, "constrain")

    # --- life ---------------------------------------------------------------

    async def start(self) -> None:
        """Reads the model's description and starts the engine; returns before it is READY.

        Raises CheckpointError.
        """
        self._model = await asyncio.to_thread(ServedModel.read, self._config)
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
        """Ends every open request with EngineUnavailableError."""
        self.runs.end_all(reason)

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the engine for good. What is open ends with EngineUnavailableError."""
        self.drain()
        self.runs.end_all("the server has stopped")
        # An engine that still loads would not look at its commands in that time.
        await self._supervisor.stop(timeout_s if self.state is EngineState.READY else 0.0)
        self._validators.shutdown(wait=False, cancel_futures=True)
        self._builders.shutdown(wait=False, cancel_futures=True)

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
        return total(self._former, self._present)

    @property
    def num_waiting_rows(self) -> int:
        """Also while a step hangs: rows that were taken in and are in no step."""
        return max(0, self.runs.num_rows - self._present.running_rows)

    @property
    def num_restarts(self) -> int:
        return self._supervisor.num_restarts

    # --- requests -----------------------------------------------------------

    async def submit(
        self, request: Request, deadline_ns: int | None = None, origin: Origin = _ANYONE
    ) -> RequestStream:
        """See Runs.submit."""
        return await self.runs.submit(request, deadline_ns, origin)

    def cancel(self, group: str, request_id: str) -> bool:
        """Ends the group's own requests of this id; whether there was one."""
        return self.runs.cancel(group, request_id)

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
                self._validators, validation.encode_prompt, prompt, model.info, model.tokenizer
            )
        finally:
            self._num_encoding -= 1

    # --- inside -------------------------------------------------------------

    def _known_model(self) -> ServedModel:
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

    async def _resolve(self, request: Request) -> ResolvedRequest:
        model = self._known_model()
        known = (model.info, model.limits, model.tokenizer, model.compiler)
        if not must_build(request, model.compiler, model.tokenizer):
            return await self._in_thread(self._validators, validation.resolve, request, *known)
        # a new constraint may take seconds: then only others with one wait behind it
        if self._num_building >= _MAX_BUILDING:
            raise QueueFullError(f"{_MAX_BUILDING} constraints are being built already", 1.0)
        self._num_building += 1
        try:
            return await self._in_thread(self._builders, validation.resolve, request, *known)
        finally:
            self._num_building -= 1

    def _stepped(self, report: StepReport) -> None:
        self._present = report.statistics
        if report.timing is not None:
            self._on_step(report.timing)
        self.runs.stepped(report)

    def _lost(self, lost: Lost) -> None:
        ended = total(self._former, self._present)
        self._former = dataclasses.replace(
            ended,
            requests_failed=ended.requests_failed + self.runs.num_open,
            running_rows=0,
            waiting_rows=0,
        )
        self._present = Statistics()
        self.runs.lost(lost, self._supervisor.retry_after_s)

    async def _in_thread(
        self, pool: ThreadPoolExecutor, function: Callable[..., _T], *arguments: object
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, function, *arguments)
