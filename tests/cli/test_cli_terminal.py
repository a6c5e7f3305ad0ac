"""`watch` and `generate` on a terminal: colours, streaming, and Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from vdiff_grpc.client import Client

PROMPT = "Once upon a time"
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Terminal:
    """A command on a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            # The shell gives its terminal to the command, as a login does.
            [sys.executable, "-c", _AS_SESSION, sys.executable, "-m", "vdiff_grpc", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self.output = ""

    def read_until(self, words: str | None, timeout_s: float = 60.0) -> None:
        """Reads until the words are there; None: until the end."""
        deadline = time.monotonic() + timeout_s
        while words is None or words not in self.output:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no {words!r} in {self.output!r}"
            if not select.select([self._master], [], [], left_s)[0]:
                continue
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # Linux's way to say that the other end is closed
                data = b""
            if not data:
                assert words is None, f"no {words!r} in {self.output!r}"
                return
            self.output += data.decode(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def end(self) -> int:
        self.read_until(None)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._master)


_AS_SESSION = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def terminal(demo_address: str) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(command: str, *arguments: str, **size: int) -> Terminal:
        started.append(Terminal(command, "--address", demo_address, *arguments, **size))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("columns", [80, 120])
def test_watch_colours_by_confidence_and_leaves_text_and_summary(terminal, columns: int) -> None:
    watch = terminal("watch", PROMPT, "--max-new-tokens", "24", "--seed", "1", columns=columns)
    assert watch.end() == 0, watch.output
    assert re.search(r"\x1b\[38;2;\d+;\d+;\d+m", watch.output)
    assert "░░░" in watch.output
    assert "unsure" in watch.output
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", watch.output)
    assert all(len(line) <= columns for line in re.split(r"[\r\n]+", plain) if "│" in line)
    assert re.search(r"\d+ forward passes · [\d.]+ tokens per forward", plain)
    assert watch.output.rfind(SHOW_CURSOR) > watch.output.rfind(HIDE_CURSOR) >= 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_can_be_stopped_and_restores_the_terminal(terminal, number: signal.Signals) -> None:
    watch = terminal("watch", PROMPT, "--max-new-tokens", "24", "--steps", "24", "--delay", "5")
    watch.read_until("1/24 filled")
    if number is signal.SIGINT:
        watch.press_ctrl_c()
    else:
        watch.process.terminate()
    assert watch.end() == 128 + number
    assert watch.output.rfind(SHOW_CURSOR) > watch.output.rfind(HIDE_CURSOR) >= 0
    assert "Traceback" not in watch.output


def test_watch_writes_lines_on_a_terminal_when_asked_to(terminal) -> None:
    watch = terminal("watch", PROMPT, "--max-new-tokens", "4", "--steps", "4", "--plain")
    assert watch.end() == 0
    assert "step 1  block 1  filled 1/4" in watch.output
    assert "\x1b" not in watch.output


def test_generate_streams_on_a_terminal(terminal, demo_address: str) -> None:
    generate = terminal("generate", PROMPT, "--max-new-tokens", "12", "--seed", "1")
    assert generate.end() == 0
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=12, seed=1)
    assert generate.output.replace("\r\n", "\n") == reply.outputs[0].text + "\n"


def test_generate_ends_with_130_on_ctrl_c(terminal, demo_address: str) -> None:
    generate = terminal("generate", PROMPT, "--max-new-tokens", "450", "--ignore-eos", "--n", "2")
    deadline = time.monotonic() + 30
    with Client(demo_address) as client:
        while not client.server_info().statistics.running_rows:
            assert time.monotonic() < deadline
            assert generate.process.poll() is None, "ended before Ctrl-C"
    generate.press_ctrl_c()
    assert generate.end() == 130
    assert "Traceback" not in generate.output
