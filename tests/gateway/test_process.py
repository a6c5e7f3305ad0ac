"""The gateway as a process of its own: what it loads, how it starts, logs, drains and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx
import pytest

from gateway.config import GatewayConfig, load_config
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_refusals import TEXT
from tests.gateway.test_requests import LONG

COMMAND = [sys.executable, "-m", "gateway.app", "--port", "0"]


@contextmanager
def process(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str, IO[str]]]:
    """A gateway with JSON logs: the process, its URL, its log."""
    environ = os.environ | {"VDIFF_GATEWAY_LOG_FORMAT": "json"}
    with subprocess.Popen(
        [*COMMAND, *flags], stderr=subprocess.PIPE, text=True, env=environ
    ) as gateway:
        assert gateway.stderr is not None
        try:
            first = json.loads(gateway.stderr.readline())
            match = re.search(r"http://\S+:\d+", first["message"])
            assert match is not None, first
            yield gateway, match[0], gateway.stderr
        finally:
            gateway.kill()


def test_the_gateway_loads_no_model_code() -> None:
    code = (
        "import sys, gateway.app\n"
        "ours = {m for m in sys.modules if m.startswith('vdiff_grpc.')}\n"
        "bad = {'torch', 'transformers', 'tokenizers', 'numpy', 'jinja2', 'opentelemetry'} & set(sys.modules)\n"
        "print(sorted(bad), sorted(m for m in ours if not m.startswith('vdiff_grpc.v1')))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    bare = ["channels", "errors", "keys", "meters", "sliding_window", "telemetry", "tracing"]
    assert out.stdout.split("\n")[0] == f"[] {[f'vdiff_grpc.{name}' for name in bare]}"


def test_flags_win_over_the_environment_and_an_empty_variable_is_unset() -> None:
    environ = {
        "VDIFF_GATEWAY_PORT": "1234",
        "VDIFF_GATEWAY_SERVER": "b:2",
        "VDIFF_GATEWAY_HOST": "",
    }
    config = load_config(["--server", "a:1"], environ)
    assert config == GatewayConfig(port=1234, server="a:1")


@pytest.mark.parametrize(
    ("argv", "environ", "word"),
    [
        (["--port", "70000"], {}, "port"),
        (["--port", "x"], {}, "--port"),
        (["--grace-s", "-1"], {}, "grace_s"),
        (["--grace-s", "nan"], {}, "grace_s"),
        (["--nothing"], {}, "--nothing"),
        ([], {"VDIFF_GATEWAY_LOG_LEVEL": "loud"}, "log_level"),
        ([], {"VDIFF_GATEWAY_MAX_BODY_BYTES": "0"}, "max_body_bytes"),
    ],
)
def test_a_wrong_setting_ends_the_process_by_name(
    argv: list[str], environ: dict[str, str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(argv, environ)
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


def test_a_taken_port_ends_the_process_with_a_word(gateway: RunningGateway) -> None:
    port = gateway.url.rpartition(":")[2]
    done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_lets_an_open_stream_finish_and_exits_0(demo: RunningServer) -> None:
    with process("--server", demo.address) as (gateway, url, log):
        fields = LONG | {"stream": True, "max_tokens": 64, "n": 1}
        with httpx.stream("POST", f"{url}/v1/completions", json=fields, timeout=30) as reply:
            lines = reply.iter_lines()
            next(lines)
            gateway.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert gateway.wait(10) == 0
        lines_logged = [json.loads(line) for line in log]
    request = next(line for line in lines_logged if line["message"] == "request")
    assert {"time", "level", "logger", "request_id", "method", "route", "status", "ms"} <= set(
        request
    )
    assert TEXT["prompt"] not in str(lines_logged)
    assert not any(line["level"] == "error" for line in lines_logged)


def test_what_is_open_after_the_grace_gets_an_error_and_frees_its_rows(
    demo: RunningServer,
) -> None:
    with process("--server", demo.address, "--grace-s", "0.05") as (gateway, url, _):
        fields = LONG | {"stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=fields, timeout=30) as reply:
            lines = reply.iter_lines()
            next(lines)
            gateway.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
        assert gateway.wait(10) == 0
    eventually(lambda: demo.statistics().running_rows == 0)


def test_not_ready_is_said_before_connections_are_refused(demo: RunningServer) -> None:
    with process("--server", demo.address, "--drain-delay-s", "30") as (gateway, url, _):
        with httpx.Client(base_url=url) as http:
            assert http.get("/health/ready").status_code == 200
            gateway.send_signal(signal.SIGTERM)
            eventually(lambda: http.get("/health/ready").status_code == 503)
            assert http.get("/health").json()["reason"] == "the gateway is shutting down"
            assert http.get("/health/live").status_code == 200
            assert http.post("/v1/completions", json=TEXT).status_code == 200
        gateway.send_signal(signal.SIGTERM)  # a second one does not wait
        assert gateway.wait(10) == 0
