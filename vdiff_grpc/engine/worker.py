"""The loop that owns the engine, in a process of its own (or a thread, for tests and embedding).

Knows nothing of RPCs. Commands are applied between steps; one report leaves per step. The loop
never waits on the pipe: a thread sends, another receives. Imports no torch until it runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol

from vdiff_grpc.engine.messages import (
    Abort,
    Add,
    Command,
    Report,
    Shutdown,
    StateChanged,
    StepReport,
)
from vdiff_grpc.engine.types import EngineConfig, EngineState, Event, Failed
from vdiff_grpc.errors import CheckpointError, QueueFullError

if TYPE_CHECKING:
    from vdiff_grpc.engine.engine import Engine

logger = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[Command]
Send = Callable[[Report], None]


class EngineWorker(Protocol):
    """What the server holds in its hand."""

    def start(self) -> None:
        """Returns at once; states are reported."""
        ...

    def send(self, command: Command) -> None: ...

    def stop(self, timeout_s: float) -> None:
        """Ends after the current step, by force after `timeout_s`. `on_exit` is not called."""
        ...


def run_loop(config: EngineConfig, inbox: Inbox, send: Send) -> None:
    """Loads, warms up, and serves until Shutdown. A failed load is reported as ERROR."""
    send(StateChanged(EngineState.LOADING))
    try:
        from vdiff_grpc.engine.engine import Engine

        engine = Engine(config)
        send(StateChanged(EngineState.WARMING_UP))
        engine.warm_up()
    except CheckpointError as error:
        send(StateChanged(EngineState.ERROR, str(error)))
        return
    except Exception as error:
        logger.exception("the engine cannot start")
        send(StateChanged(EngineState.ERROR, f"{type(error).__name__}: {error}"))
        return
    model = engine.model
    dtype = str(model.dtype).removeprefix("torch.")
    send(StateChanged(EngineState.READY, device=str(model.device), dtype=dtype))
    while True:
        events: list[tuple[int, Event]] = []
        commands = _take(inbox, wait=not engine.has_work)
        if any(isinstance(command, Shutdown) for command in commands):
            return
        for command in commands:
            _apply(engine, command, events)
        events += engine.step()
        send(StepReport(tuple(events), engine.statistics))


def _take(inbox: Inbox, *, wait: bool) -> list[Command]:
    """All commands that have come; at least one when told to wait."""
    commands = [inbox.get()] if wait else []
    while True:
        try:
            commands.append(inbox.get_nowait())
        except queue.Empty:
            return commands


def _apply(engine: Engine, command: Command, events: list[tuple[int, Event]]) -> None:
    match command:
        case Add(key, request):
            try:
                engine.add(key, request)
            except QueueFullError as error:
                events.append((key, Failed(error)))
        case Abort(key):
            engine.abort(key)


class EngineThread:
    """The loop in a thread of this process, whose logging it shares: `configure` is not called."""

    def __init__(
        self,
        config: EngineConfig,
        on_report: Callable[[Report], None],
        on_exit: Callable[[str], None],
        configure: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._on_report = on_report
        self._on_exit = on_exit
        self._inbox: Inbox = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, command: Command) -> None:
        self._inbox.put(command)

    def stop(self, timeout_s: float) -> None:
        self._stopping = True
        self._inbox.put(Shutdown())
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        reason = "the engine's loop returned"
        try:
            run_loop(self._config, self._inbox, self._on_report)
        except Exception as error:
            logger.exception("the engine's loop failed")
            reason = f"{type(error).__name__}: {error}"
        if not self._stopping:
            self._on_exit(reason)


class EngineProcess:
    """The loop in a spawned process. It ignores SIGINT and SIGTERM, and ends with its parent."""

    def __init__(
        self,
        config: EngineConfig,
        on_report: Callable[[Report], None],
        on_exit: Callable[[str], None],
        configure: Callable[[], None] | None = None,
    ) -> None:
        """configure: picklable; run first in the new process, to set up its logging."""
        self._on_report = on_report
        self._on_exit = on_exit
        self._stopping = False
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(
            target=_child, args=(config, self._theirs, configure), name="vdiff-engine", daemon=True
        )
        self._reader = threading.Thread(target=self._read, name="engine-reports", daemon=True)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def start(self) -> None:
        self._process.start()
        self._theirs.close()
        self._reader.start()

    def send(self, command: Command) -> None:
        """The child's reader takes commands at once, so this does not wait for a step."""
        with self._lock:
            try:
                self._connection.send(command)
            except OSError:  # it is gone; the reader tells
                logger.debug("command for an engine that has ended", exc_info=True)

    def stop(self, timeout_s: float) -> None:
        self._stopping = True
        if self._process.pid is None:
            return
        self.send(Shutdown())
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._reader.join(timeout_s)
        self._connection.close()

    def _read(self) -> None:
        while True:
            try:
                report = self._connection.recv()
            except (EOFError, OSError):
                break
            self._on_report(report)
        self._process.join()
        if not self._stopping:
            self._on_exit(_describe_exit(self._process.exitcode))


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _child(
    config: EngineConfig, connection: Connection, configure: Callable[[], None] | None
) -> None:
    """The process's main: two threads for the pipe, the loop in between."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Before torch is loaded. OpenMP's threads otherwise spin while they wait for one another: on
    # two cores shared with other work a step took ten times as long (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if configure is not None:
        configure()
    inbox: Inbox = queue.SimpleQueue()
    outbox: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send_all, args=(connection, outbox), daemon=True)
    sender.start()
    threading.Thread(target=_receive_all, args=(connection, inbox), daemon=True).start()
    run_loop(config, inbox, outbox.put)
    outbox.put(None)
    sender.join()


def _send_all(connection: Connection, outbox: queue.SimpleQueue[Report | None]) -> None:
    while (report := outbox.get()) is not None:
        try:
            connection.send(report)
        except OSError:
            os._exit(0)  # the parent is gone


def _receive_all(connection: Connection, inbox: Inbox) -> None:
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone
