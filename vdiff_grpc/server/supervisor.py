"""Keeps one engine running: starts it, and again with back-off when it ends. Knows no requests.

All on the event loop, except that the engine's reports arrive on a thread of its own and hop over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from vdiff_grpc.engine import worker
from vdiff_grpc.engine.messages import Command, Ended, Report, StateChanged, StepReport
from vdiff_grpc.engine.types import EngineConfig, EngineState

logger = logging.getLogger(__name__)

EngineKind = Literal["process", "thread"]

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_WORTH = 4.0  # an engine that served for so many delays was worth starting
_Said = TypeVar("_Said")


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine has ended. keys: the requests of the step in which it ended by itself."""

    reason: str
    keys: frozenset[int]


class Supervisor:
    """Owns the worker.

    max_step_time_s, max_load_time_s: an engine that takes longer is killed; 0: never. A thread
    cannot be. configure: run first in the engine's process. on_step: every StepReport. on_lost:
    the engine has ended. on_change: `state` or `detail` is another. An engine that never became
    READY is not started again: see `failed`.
    """

    def __init__(
        self,
        config: EngineConfig,
        kind: EngineKind,
        *,
        max_step_time_s: float,
        max_load_time_s: float,
        configure: Callable[[], None] | None,
        on_step: Callable[[StepReport], None],
        on_lost: Callable[[Lost], None],
        on_change: Callable[[], None],
    ) -> None:
        self.state = EngineState.UNINITIALIZED
        self.detail = ""
        self.device = ""
        self.dtype = ""
        self._config = config
        self._kind = kind
        self._max_step_time_s = max_step_time_s
        self._max_load_time_s = max_load_time_s
        self.num_restarts = 0
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
        self._watch: asyncio.Task[None] | None = None

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
        if self._kind == "process":
            self._watch = loop.create_task(self._watch_over(self._worker, generation))
        await asyncio.to_thread(self._worker.start)

    def send(self, command: Command) -> None:
        """Hands a command to the engine; one that is gone will never miss it."""
        if self._worker is not None:
            with suppress(OSError, ValueError):  # its end is about to be reported
                self._worker.send(command)

    async def stop(self, timeout_s: float) -> None:
        """Ends the engine for good."""
        self._stopping = True
        for task in (self._restart, self._watch):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop, timeout_s)

    def _reported(self, generation: int, report: Report) -> None:
        if generation != self._generation or self._stopping:
            return
        if isinstance(report, StepReport):
            self._on_step(report)
        elif report.state is EngineState.ERROR:
            self._lost(Ended(report.detail, report.by_itself))
        else:
            self._state_changed(report)

    def _state_changed(self, report: StateChanged) -> None:
        if report.state is EngineState.READY:
            self._ever_ready = True
            self._ready_at = time.monotonic()
            self.device, self.dtype = report.device, report.dtype
        self._set_state(report.state, report.detail)

    def _ended(self, generation: int, ended: Ended) -> None:
        if generation == self._generation and not self._stopping:
            self._lost(ended)

    async def _watch_over(self, engine: worker.EngineWorker, generation: int) -> None:
        """Kills an engine that hangs."""
        limits = [limit for limit in (self._max_step_time_s, self._max_load_time_s) if limit]
        if not limits:
            return
        began = time.monotonic()
        while generation == self._generation:
            await asyncio.sleep(min(1.0, *(limit / 4 for limit in limits)))
            step_s, what, limit = engine.pulse.step_s, "step", self._max_step_time_s
            if self._ready_at is None:
                step_s, what, limit = time.monotonic() - began, "load", self._max_load_time_s
            if generation == self._generation and limit and step_s > limit:
                reason = f"it hung: max_{what}_time_s is {limit:g}, and {step_s:.3g} s had passed"
                # the keys are read before the process and what it says can be gone
                self._lost(Ended(reason, by_itself=True))
                engine.kill()

    def _lost(self, ended: Ended) -> None:
        """The present worker is of no more use: says why, and starts another one later."""
        self._generation += 1
        reason, keys = ended.reason, frozenset[int]()
        if ended.by_itself and self._worker is not None:
            keys = self._worker.pulse.keys
        if self._ready_at is not None:
            lived_s = time.monotonic() - self._ready_at
            if lived_s > _WORTH * self._delay_s():  # no crash loop
                self._failures = 0
        self._ready_at = None
        self._set_state(EngineState.ERROR, reason)
        self._on_lost(Lost(reason, keys))
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
        self.num_restarts += 1
        try:
            await self.start()
        except Exception as error:
            logger.exception("the engine could not be started")
            self._lost(Ended(repr(error), by_itself=False))

    def _delay_s(self) -> float:
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0**self._failures)

    def _set_state(self, state: EngineState, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._on_change()
