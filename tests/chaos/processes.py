"""Servers and Envoy as processes of their own, on ports that stay the same over restarts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY
from vdiff_grpc.client import Client


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class ServerProcess:
    """`vdiff-grpc serve` with the tiny checkpoint; its log goes to a file.

    is_there: at once; else its port is known, and nobody listens until `start`.
    """

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path, *flags: str, is_there: bool = True) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / f"server-{self.port}.log"
        self._flags = (
            *("--model", str(TINY), "--port", str(self.port), "--device", "cpu", "--threads", "1"),
            *flags,
        )
        if is_there:
            self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vdiff_grpc", "serve", *self._flags],
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        with Client(self.address) as client:
            client.wait_until_ready(90)

    def leave(self) -> int:
        """SIGTERM; gives the exit code once it has drained."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


ENVOY = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))

_ENVOY_CONFIG = Path(__file__).parent.parent.parent / "docs" / "envoy.yaml"
_LISTENER = "{address: 0.0.0.0, port_value: 8080}"
_ENDPOINT = "        - endpoint: {address: {socket_address: {address: vdiff-headless, port_value: 50051}}}\n"


class Envoy:
    """In front of servers that it asks for their health, in round-robin: as docs/envoy.yaml says."""

    def __init__(self, folder: Path, servers: list[ServerProcess]) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        documented = _ENVOY_CONFIG.read_text()
        assert documented.count(_LISTENER) == documented.count(_ENDPOINT) == 1
        endpoints = "".join(
            _ENDPOINT.replace("vdiff-headless", "127.0.0.1").replace("50051", str(server.port))
            for server in servers
        )
        listener = f"{{address: 127.0.0.1, port_value: {port}}}"
        config = folder / "envoy.yaml"
        config.write_text(
            documented.replace(_LISTENER, listener).replace(_ENDPOINT, endpoints), encoding="utf-8"
        )
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    ENVOY,
                    "-c",
                    str(config),
                    "--concurrency",
                    "1",
                    "--log-level",
                    "warning",
                    "--use-dynamic-base-id",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
