"""Starts the other ranks' processes, speaks to them, and notices when one ends. Loads no torch.

Each has a socket pair with the engine's process and ends when that closes, so none outlives it.
They are told of a step by it and not by a collective: one may wait for the next step for hours.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from vdiff_grpc.engine.messages import Ended
from vdiff_grpc.engine.parallel.messages import Broken, Forward, Loaded, Part, Reserve, Stop
from vdiff_grpc.errors import CheckpointError

logger = logging.getLogger(__name__)

_STOP_S = 5.0  # that a rank has to end
_REASON_S = 5.0  # in which the reason of a broken step is found
_SOURCES = Path(__file__).resolve().parents[3]  # where the package lies
_MAIN = "from vdiff_grpc.engine.parallel.rank import main; main({})"


class RankLostError(RuntimeError):
    """A rank has ended, or is no longer in step: no forward pass is possible any more."""


class Ranks:
    """Owns the processes of the ranks 1 to N - 1. Used by one thread.

    on_lost: told once, from another thread, when the first has ended.
    """

    def __init__(self, on_lost: Callable[[Ended], None]) -> None:
        self._on_lost = on_lost
        self._folder = tempfile.TemporaryDirectory(prefix="vdiff-ranks-")
        self.store = str(Path(self._folder.name) / "store")
        self._members: list[_Rank] = []
        self._lock = threading.Lock()
        self._lost = threading.Event()
        self._reason = ""
        self._closing = False

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(member.process.pid for member in self._members)

    def start(self, parts: Sequence[Part]) -> None:
        """Returns while they load."""
        for part in parts:
            self._members.append(_Rank(part, self._ended))

    def wait_loaded(self) -> None:
        """Until all have their weights. Raises CheckpointError with the reason when one ends."""
        for member in self._members:
            if not self._lost.is_set():
                member.loaded.wait()
        if self._lost.is_set():
            raise CheckpointError(self._reason)

    def send(self, step: Forward | Reserve) -> None:
        """Every rank computes it. Raises RankLostError."""
        try:
            for member in self._members:
                member.connection.send(step)
        except OSError as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> RankLostError:
        """Why a step has failed in this process: as a rule, because another has ended."""
        if self._lost.wait(_REASON_S):
            return RankLostError(self._reason)
        return RankLostError(f"the ranks are out of step: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Ends them, by force where they do not."""
        self._closing = True
        for member in self._members:
            member.stop()
        self._folder.cleanup()

    def _ended(self, ended: Ended) -> None:
        with self._lock:
            if self._closing or self._lost.is_set():
                return
            self._reason = ended.reason
            self._on_lost(ended)  # before the step that fails for it can say so
            self._lost.set()
        for member in self._members:
            member.loaded.set()  # nobody waits for them any more


class _Rank:
    """One process, and the thread that listens to it."""

    def __init__(self, part: Part, on_end: Callable[[Ended], None]) -> None:
        self.loaded = threading.Event()
        self._rank = part.rank
        self._on_end = on_end
        self.connection, theirs = multiprocessing.Pipe()
        paths = (str(_SOURCES), os.environ.get("PYTHONPATH", ""))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN.format(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it has ended; the listener tells
            self.connection.send(part)
        self._listener = threading.Thread(
            target=self._listen, name=f"rank-{part.rank}", daemon=True
        )
        self._listener.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(Stop())
        self._listener.join(_STOP_S)
        if self._listener.is_alive():
            self.process.kill()
            self._listener.join()
        self.connection.close()

    def _listen(self) -> None:
        said = ""
        while True:
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, Loaded):
                self.loaded.set()
            elif isinstance(message, Broken):
                said = message.reason
                logger.error("rank %d: %s\n%s", self._rank, said, message.trace)
        ended = Ended.with_code(self.process.wait())
        how = said or ended.reason
        reason = f"rank {self._rank} of the tensor-parallel model has ended: {how}"
        self._on_end(Ended(reason, ended.by_itself))
