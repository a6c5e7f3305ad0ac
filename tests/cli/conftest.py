"""Commands as processes of their own: what they print, how they end, what they leave."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MARK = "VDIFF_TEST_MARK"
START_S = 90.0


class Command:
    """A running `vdiff-grpc ...` in a session of its own, with all output in `lines`."""

    def __init__(self, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vdiff_grpc", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: self._mark},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, words: str) -> str:
        """Waits for a line with these words and returns it."""
        deadline = time.monotonic() + START_S
        while (line := self._lines.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            if words in line:
                return line
        raise AssertionError(f"ended without {words!r}:\n{self.output}")

    def wait(self, timeout_s: float = START_S) -> int:
        """Waits for the end; `output` is complete then."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def left(self) -> dict[int, str]:
        """All living processes that come from this one, itself included: pid -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode(errors="replace")
            except OSError:
                continue
        return found

    def assert_none_left(self, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while left := self.left():
            assert time.monotonic() < deadline, f"still running: {left}\n{self.output}"
            time.sleep(0.05)

    def close(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            self._lines.put(line)
        self._lines.put(None)


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends what a failed test leaves."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("counts processes in /proc")
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()
