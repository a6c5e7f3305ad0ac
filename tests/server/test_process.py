"""The whole server as a process: signals and exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from tests.conftest import TINY
from tests.server.calls import long_spec, stream
from vdiff_grpc import v1

_MAIN = """
import argparse, asyncio, os, sys
from vdiff_grpc import config
from vdiff_grpc.server.app import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    sys.exit(asyncio.run(serve(config.from_flags(parser.parse_args(), os.environ))))
"""


class Process:
    def __init__(self, *arguments: str) -> None:
        options = ("--model", str(TINY), "--port", "0", "--device", "cpu", "--threads", "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, *options, *arguments], stderr=subprocess.PIPE, text=True
        )

    def line(self, pattern: str) -> re.Match[str]:
        """Waits for a log line."""
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError("".join(seen))

    def address(self) -> str:
        """Waits for the line that says it serves."""
        return self.line(r"vdiff-grpc \S+ serving \S+ on (\S+)")[1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.process.kill()
        process.process.communicate()


def test_sigterm_finishes_open_calls_and_exits_0_leaving_one_line_per_request(
    started: list[Process],
) -> None:
    started.append(process := Process("--max-running-rows", "1"))
    with grpc.insecure_channel(process.address()) as channel:
        asked = stream(long_spec(n=4))
        call = v1.GenerationServiceStub(channel).StreamGenerate(
            asked, metadata=(("x-request-id", "the-open-one"),)
        )
        assert next(call).HasField("started")
        process.signal(signal.SIGTERM)
        assert list(call)[-1].HasField("finished")
    code, log = process.end()
    assert code == 0, log
    [line] = [line for line in log.splitlines() if "id=the-open-one" in line]
    assert "rpc=GenerationService/StreamGenerate model=tiny-llada code=OK reason=length" in line
    assert "tokens=480 forwards=480" in line


def test_a_second_signal_ends_at_once(started: list[Process]) -> None:
    started.append(process := Process("--max-running-rows", "1", "--drain-delay-s", "60"))
    with grpc.insecure_channel(process.address()) as channel:
        call = v1.GenerationServiceStub(channel).StreamGenerate(stream(long_spec(n=8)))
        assert next(call).HasField("started")
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        code, log = process.end()
        assert code == 1, log
        call.cancel()


def test_a_signal_while_it_loads_ends_it(started: list[Process]) -> None:
    started.append(process := Process("--drain-delay-s", "60"))
    process.line("listening on")
    process.signal(signal.SIGTERM)
    code, log = process.end()
    assert code == 0, log
    assert "serving" not in log


def test_a_checkpoint_that_cannot_be_loaded_ends_it_with_the_reason() -> None:
    code, log = Process("--model", "/nowhere/llada").end()
    assert code == 1
    assert "/nowhere/llada" in log
    assert "Traceback" not in log


def test_a_wrong_flag_ends_it_with_code_2() -> None:
    code, log = Process("--port", "sixty").end()
    assert (code, log.count("\n")) == (2, 1)
    assert "--port: 'sixty'" in log
