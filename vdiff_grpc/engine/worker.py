"""The loop that owns the engine, in a process of its own (or a thread, for tests and embedding).

Knows nothing of RPCs. Commands are applied between steps; one report leaves per step. The loop
never waits on the pipe: a thread sends, another receives. Imports no torch until it runs.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol

from vdiff_grpc.engine.events import Event, Failed
from vdiff_grpc.engine.messages import (
    Abort,
    Add,
    Command,
    Ended,
    Extend,
    Report,
    Shutdown,
    StateChanged,
    StepReport,
)
from vdiff_grpc.engine.pulse import Pulse
from vdiff_grpc.engine.types import EngineConfig, EngineState
from vdiff_grpc.errors import BudgetError, CheckpointError, QueueFullError

if TYPE_CHECKING:
    from vdiff_grpc.engine.engine import Engine
    from vdiff_grpc.engine.sequence import Sequence

logger = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[Command]
Send = Callable[[Report], None]


class EngineWorker(Protocol):
    """What the server holds in its hand.

    pulse: may be read at any time, also after the engine's end.
    """

    pulse: Pulse

    def start(self) -> None:
        """Returns at once; states are reported."""
        ...

    def send(self, command: Command) -> None: ...

    def stop(self, timeout_s: float) -> None:
        """Ends after the current step, by force after `timeout_s`. `on_exit` is not called."""
        ...

    def kill(self) -> None:
        """Ends at once, wherever it is; `on_exit` is called. A thread cannot be ended so."""
        ...


def run_loop(config: EngineConfig, inbox: Inbox, send: Send, pulse: Pulse) -> None:
    """Loads, warms up, and serves until Shutdown.

    A failed load is reported as ERROR, and so is what leaves the device unusable.
    """
    with contextlib.ExitStack() as ends:
        _run(config, inbox, send, pulse, ends)


def _run(
    config: EngineConfig, inbox: Inbox, send: Send, pulse: Pulse, ends: contextlib.ExitStack
) -> None:
    send(StateChanged(EngineState.LOADING))

    def lost(ended: Ended) -> None:
        """Of a process that holds a part of the model; from a thread of its own."""
        send(StateChanged(EngineState.ERROR, ended.reason, by_itself=ended.by_itself))
        inbox.put(Shutdown())

    try:
        from vdiff_grpc.engine.engine import Engine
        from vdiff_grpc.engine.faults import Faults

        faults = Faults.from_environment(os.environ)
        engine = Engine(config, on_lost=lost)
        ends.callback(engine.close)
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

    def before_step(rows: Rows[Sequence]) -> None:
        pulse.begin(row.key for row in rows)
        faults.strike(rows)

    engine.before_step = before_step
    while True:
        commands = _take(inbox, wait=not engine.has_work)
        if any(isinstance(command, Shutdown) for command in commands):
            return
        pulse.begin(command.key for command in commands if isinstance(command, Add))
        try:
            report = _step(engine, commands)
        except Exception as error:
            logger.exception("the engine cannot go on")
            what = (str(error).splitlines() or [""])[0]
            send(StateChanged(EngineState.ERROR, f"{type(error).__name__}: {what}"))
            return
        pulse.end()
        send(report)


def _step(engine: Engine, commands: list[Command]) -> StepReport:
    events: list[tuple[int, Event]] = []
    for command in commands:
        _apply(engine, command, events)
    events += engine.step()
    return StepReport(
        tuple(events), engine.statistics, engine.take_spent(), engine.take_marks(), engine.timing
    )


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
        case Add(key, request, is_watched):
            try:
                engine.add(key, request, is_watched=is_watched)
            except (QueueFullError, BudgetError) as error:
                events.append((key, Failed(error)))
        case Abort(key):
            engine.abort(key)
        case Extend(key, deadline_ns):
            engine.extend(key, deadline_ns)


class EngineThread:
    """The loop in a thread of this process, whose logging it shares: `configure` is not called."""

    def __init__(
        self,
        config: EngineConfig,
        on_report: Callable[[Report], None],
        on_exit: Callable[[Ended], None],
        configure: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._on_report = on_report
        self._on_exit = on_exit
        self._inbox: Inbox = queue.SimpleQueue()
        self._stopping = False
        self.pulse = Pulse(multiprocessing.get_context("spawn"), config.max_running_rows)
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

    def kill(self) -> None:
        """Does nothing: see EngineWorker."""

    def _run(self) -> None:
        reason = "the engine's loop returned"
        try:
            run_loop(self._config, self._inbox, self._on_report, self.pulse)
        except Exception as error:
            logger.exception("the engine's loop failed")
            reason = f"{type(error).__name__}: {error}"
        if not self._stopping:
            self._on_exit(Ended(reason, by_itself=True))


class EngineProcess:
    """The loop in a spawned process. It ignores SIGINT and SIGTERM, and ends with its parent."""

    def __init__(
        self,
        config: EngineConfig,
        on_report: Callable[[Report], None],
        on_exit: Callable[[Ended], None],
        configure: Callable[[], None] | None = None,
    ) -> None:
        """configure: picklable; run first in the new process, to set up its logging."""
        self._on_report = on_report
        self._on_exit = on_exit
        self._stopping = False
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self.pulse = Pulse(context, config.max_running_rows)
        self._process = context.Process(
            target=_child,
            args=(config, self._theirs, self.pulse, configure),
            name="vdiff-engine",
            daemon=True,
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

    def kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()

    def _read(self) -> None:
        while True:
            try:
                report = self._connection.recv()
            except (EOFError, OSError):
                break
            self._on_report(report)
        self._process.join()
        if not self._stopping:
            self._on_exit(Ended.with_code(self._process.exitcode))


def _child(
    config: EngineConfig,
    connection: Connection,
    pulse: Pulse,
    configure: Callable[[], None] | None,
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
    run_loop(config, inbox, outbox.put, pulse)
    outbox.put(None)
    sender.join()
    # Without the interpreter's own clean-up, in which a broken device can hang.
    os._exit(0)


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
