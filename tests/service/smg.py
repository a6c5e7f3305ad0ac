"""The router smg as a process, out of PyPI into a virtual environment of its own."""

from __future__ import annotations

import subprocess
import time
import venv
from pathlib import Path

import httpx
import pytest

from tests.chaos.processes import free_port
from tests.fetched import alone

VERSION = "1.13.0"
ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".cache" / f"smg-{VERSION}"  # ignored by git


def installed() -> Path:
    """The command; skips the test where PyPI cannot be reached and nothing was installed before."""
    done = FOLDER / "installed"
    with alone(FOLDER.name):
        if not done.exists():
            venv.create(FOLDER, with_pip=True, clear=True)
            pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-q", f"smg=={VERSION}"]
            result = subprocess.run(pip, capture_output=True, text=True, check=False)
            if "from versions: none" in result.stderr:
                pytest.skip(
                    f"PyPI cannot be reached for smg {VERSION}, or has none for this platform"
                )
            assert result.returncode == 0, result.stderr
            done.touch()
    return FOLDER / "bin" / "smg"


class Smg:
    """smg in front of servers; `flags` are those of `smg launch`, its addresses left out."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "smg.log"
        own = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [installed(), "launch", *flags, *own], stdout=log, stderr=log
            )

    def wait_healthy(self, number: int, timeout_s: float = 60.0) -> None:
        """Until it takes so many servers for healthy, and has fetched their tokenizer."""
        deadline = time.monotonic() + timeout_s
        while self._state() != (number, 1):
            assert time.monotonic() < deadline, self.text[-4000:]
            assert self._process.poll() is None, self.text[-4000:]
            time.sleep(0.1)  # it is another process

    def _state(self) -> tuple[int, int]:
        """Servers taken for healthy, and tokenizers."""
        try:
            ready = httpx.get(f"{self.url}/readiness", timeout=10).json()
            known = httpx.get(f"{self.url}/v1/tokenizers", timeout=10).json()
        except httpx.TransportError:
            return 0, 0
        return ready.get("healthy_workers", 0), len(known["tokenizers"])

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
