"""The gateways that are compared: how each is installed, started in front of the stand-in, and
looked at from outside. Knows nothing of latencies.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.standin import MODEL, model_folder
from benchmarks.wire import Connection

_START_LIMIT_S = 120.0
_POLL_S = 0.002
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class PeerError(Exception):
    """A peer cannot be installed or does not start; says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A gateway as it is started.

    command: {port}, {grpc}, {http} and {config} are filled in. live: a route that says 200 once the
    process answers. direct: the protocol in which the benchmark asks the stand-in itself, for what
    the gateway adds to that. config: written to a file of its own.
    """

    name: str
    version: str
    command: tuple[str, ...]
    live: str
    direct: str
    environ: Mapping[str, str] = field(default_factory=dict)
    config: str = ""


def ours() -> Kind:
    return Kind(
        "vdiff-gateway",
        version("vdiff-grpc"),
        # The entry point's own interpreter, whatever PATH says.
        (sys.executable, "-m", "gateway.app", "--port", "{port}", "--server", "{grpc}"),
        "/health/live",
        "vdiff.v1",
        # No peer limits requests unless told to.
        {"VDIFF_GATEWAY_REQUESTS_PER_MINUTE": "0"},
    )


def smg(folder: Path) -> Kind:
    """Tokenizer and template from the embedded model's folder: nothing is fetched."""
    scripts = _installed(folder / "smg", "smg", "smg-grpc-proto")
    words = "launch --host 127.0.0.1 --port {port} --prometheus-port {spare} --worker-urls"
    return Kind(
        "smg",
        _version(scripts, "smg"),
        (str(scripts / "smg"), *words.split(), "grpc://{grpc}", "--model-path", model_folder()),
        "/liveness",
        "vllm",
    )


def litellm(folder: Path) -> Kind:
    """In front of the stand-in's HTTP: it speaks no gRPC."""
    scripts = _installed(folder / "litellm", "litellm[proxy]")
    words = "--host 127.0.0.1 --port {port} --telemetry False --config {config}"
    return Kind(
        "LiteLLM",
        _version(scripts, "litellm"),
        (str(scripts / "litellm"), *words.split()),
        "/health/liveliness",
        "http",
        {
            # Prices would come from the network.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # It wants a key, which none of the others is asked for.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        },
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{MODEL}\n"
        "    api_base: http://{http}/v1\n    api_key: none\n",
    )


def vllm_stubs_folder(folder: Path) -> str:
    """Where smg's set-up has put the stubs of vLLM's contract; empty when it has not."""
    found = sorted((folder / "smg").glob("lib/python3*/site-packages/smg_grpc_proto"))
    return str(found[0].parent) if found else ""


class Running:
    """A gateway's process and what it uses, its children included."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], port: int) -> None:
        self.kind = kind
        self.address = ("127.0.0.1", port)
        self._process = process

    def cpu_s(self) -> float:
        """Processor time so far of all threads that are there."""
        total_ns = 0
        for pid in self._tree():
            for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total_ns += int(schedstat.read_text().split()[0])
        return total_ns / 1e9

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE_BYTES / 2**20

    def _tree(self) -> list[int]:
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in children.read_text().split()]
        return found

    def wait_for(self, request: bytes) -> None:
        """Until the request is answered with 200."""
        end = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise PeerError(f"{self.kind.name} has ended with {self._process.returncode}")
            with contextlib.suppress(OSError), Connection(self.address, timeout_s=5.0) as one:
                if one.ask(request).status == 200:
                    return
            time.sleep(_POLL_S)
        raise PeerError(f"{self.kind.name} did not answer within {_START_LIMIT_S:g} s")


@contextmanager
def started(kind: Kind, grpc: str, http: str, scratch: Path) -> Iterator[Running]:
    """Just started: it need not answer yet. Its log goes to a file in `scratch`."""
    port, spare = _free_port(), _free_port()
    config = scratch / f"{kind.name}.yaml"
    config.write_text(kind.config.replace("{http}", http), encoding="utf-8")
    places = {"port": port, "spare": spare, "grpc": grpc, "http": http, "config": config}
    with (scratch / f"{kind.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [word.format(**places) for word in kind.command],
            env={**os.environ, **kind.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Running(kind, process, port)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _installed(venv: Path, *packages: str) -> Path:
    """The folder of scripts of a virtual environment with the packages, made at first use."""
    scripts = venv / "bin"
    done = venv / "installed"
    if not done.exists():
        print(f"installing {packages[0]} into {venv}", file=sys.stderr)
        commands = (
            [sys.executable, "-m", "venv", str(venv)],
            [str(scripts / "pip"), "install", "-q", *packages],
        )
        for command in commands:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                last = ended.stderr.strip().rpartition("\n")[2]
                raise PeerError(f"{packages[0]} cannot be installed: {last}")
        done.touch()
    return scripts


def _version(scripts: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.check_output([str(scripts / "python"), "-c", code], text=True).strip()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
