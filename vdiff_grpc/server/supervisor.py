"""Keeps one engine running: starts it, and again with back-off when it ends. Knows no requests.

All on the event loop, except that the engine's reports arrive on a thread of its own and hop over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

from vdiff_grpc.engine import worker
from vdiff_grpc.engine.messages import Command, Report, StateChanged, StepReport
from vdiff_grpc.engine.types import EngineConfig, EngineState

logger = logging.getLogger(__name__)

EngineKind = Literal["process", "thread"]

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_Said = TypeVar("_Said")


class Supervisor:
    """Owns the worker.

    configure: run first in the engine's process. on_step: every StepReport. on_lost: the engine
    has ended, with why. on_change: `state` or `detail` is another. An engine that never became
    READY is not started again: see `failed`.
    """

    def __init__(
        self,
        config: EngineConfig,
        kind: EngineKind,
        *,
        configure: Callable[[], None] | None,
        on_step: Callable[[StepReport], None],
        on_lost: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.state = EngineState.UNINITIALIZED
        self.detail = ""
        self.device = ""
        self.dtype = ""
        self._config = config
        self._kind = kind
        self._configure = configure
        self._on_step = on_step
        self._on_lost = on_lost
        self._on_change = on_change
        self._worker: worker.EngineWorker | None = None
        self._generation = 0  # tells reports of a former worker from the present one's
        self._failures = 0
        self._ready_at: float | None = None
        self._ever_ready = False
        self._stopping = False
        self._restart: asyncio.Task[None] | None = None

    @property
    def failed(self) -> bool:
        """The engine could not be loaded; it would not be next time either."""
        return self.state is EngineState.ERROR and not self._ever_ready

    @property
    def retry_after_s(self) -> float:
        """A guess of when the engine may be READY."""
        if self.state is EngineState.ERROR:
            return max(1.0, self._delay_s())
        return 1.0

    async def start(self) -> None:
        """Starts a worker; returns before it has loaded."""
        self._generation += 1
        loop = asyncio.get_running_loop()
        generation = self._generation

        def hop(handler: Callable[[int, _Said], None], said: _Said) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(handler, generation, said)

        kind = worker.EngineProcess if self._kind == "process" else worker.EngineThread
        self._worker = kind(
            self._config,
            partial(hop, self._reported),
            partial(hop, self._ended),
            self._configure,
        )
        self._set_state(EngineState.LOADING)
        await asyncio.to_thread(self._worker.start)

    def send(self, command: Command) -> None:
        """Hands a command to the engine; one that is gone will never miss it."""
        if self._worker is not None:
            with suppress(OSError, ValueError):  # its end is about to be reported
                self._worker.send(command)

    async def stop(self, timeout_s: float) -> None:
        """Ends the engine for good."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop, timeout_s)

    def _reported(self, generation: int, report: Report) -> None:
        if generation != self._generation or self._stopping:
            return
        if isinstance(report, StepReport):
            self._on_step(report)
        elif report.state is EngineState.ERROR:
            self._lost(report.detail)
        else:
            self._state_changed(report)

    def _state_changed(self, report: StateChanged) -> None:
        if report.state is EngineState.READY:
            self._ever_ready = True
            self._ready_at = time.monotonic()
            self.device, self.dtype = report.device, report.dtype
        self._set_state(report.state, report.detail)

    def _ended(self, generation: int, reason: str) -> None:
        if generation == self._generation and not self._stopping:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        """The present worker is of no more use: says why, and starts another one later."""
        self._generation += 1
        if self._ready_at is not None and time.monotonic() - self._ready_at > _MAX_DELAY_S:
            self._failures = 0
        self._ready_at = None
        self._set_state(EngineState.ERROR, reason)
        self._on_lost(reason)
        if not self._ever_ready:
            logger.error("the engine could not be loaded: %s", reason)
            return
        delay_s = self._delay_s()
        self._failures += 1
        logger.error("engine process ended: %s; starting it again in %g s", reason, delay_s)
        self._restart = asyncio.get_running_loop().create_task(self._start_again(delay_s))

    async def _start_again(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        former, self._worker = self._worker, None
        if former is not None:
            await asyncio.to_thread(former.stop, 1.0)
        try:
            await self.start()
        except Exception as error:
            logger.exception("the engine could not be started")
            self._lost(repr(error))

    def _delay_s(self) -> float:
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0**self._failures)

    def _set_state(self, state: EngineState, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._on_change()
