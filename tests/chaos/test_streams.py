"""Many streams at once through one gateway: none fails, none sees another's, nothing stays behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.gateway.conftest import eventually
from tests.gateway.test_process import COMMAND

# Streams, seconds, and by how much the gateway's memory (MiB) may grow after the first load.
SIZES = [
    (64, 3, 16),
    pytest.param(256, 30, 16, marks=[pytest.mark.long, pytest.mark.timeout(300)]),
]


@contextmanager
def gateway(log: Path, server: str) -> Iterator[tuple[int, str]]:
    """A gateway that logs to a file: its process id and URL."""
    flags = ("--server", server, "--requests-per-minute", "0")
    with log.open("wb") as stderr, subprocess.Popen([*COMMAND, *flags], stderr=stderr) as process:
        try:
            eventually(lambda: "listening on" in log.read_text())
            match = re.search(r"listening on (http://[^ ,]+)", log.read_text())
            assert match is not None
            yield process.pid, match[1]
        finally:
            process.kill()


def load(url: str, num_streams: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos.streams", url, str(num_streams), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(("num_streams", "seconds", "grown_mib"), SIZES)
def test_many_streams_at_once_stay_apart_and_leave_nothing_behind(
    serve: Callable[..., RunningServer],
    tmp_path: Path,
    num_streams: int,
    seconds: float,
    grown_mib: int,
) -> None:
    server = serve(max_running_rows=32, max_waiting_rows=2 * num_streams, engine="process")
    with gateway(tmp_path / "log", server.address) as (pid, url):
        empty = num_descriptors(pid)
        load(url, num_streams, seconds / 3)  # buffers and pools are there after this
        before = memory_mib(pid)
        result = load(url, num_streams, seconds)
        after = memory_mib(pid)
        print(f"{result}, gateway {before:.1f} -> {after:.1f} MiB")
        assert set(result["outcomes"]) == {"right"}
        assert result["most_open"] == num_streams
        assert result["outcomes"]["right"] >= num_streams
        assert after - before < grown_mib
        eventually(lambda: num_descriptors(pid) <= empty)
    statistics = server.statistics()
    assert (statistics.running_rows, statistics.waiting_rows) == (0, 0)
