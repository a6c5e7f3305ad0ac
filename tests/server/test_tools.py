"""What people have at hand works against us: buf curl, by reflection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import RunningServer

BUF = Path(sys.executable).with_name("buf")


def buf_curl(server: RunningServer, *arguments: str) -> str:
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_buf_curl_lists_and_calls_the_services_by_reflection(server: RunningServer) -> None:
    methods = buf_curl(server, "--list-methods", f"http://{server.address}")
    assert "vdiff.v1.GenerationService/StreamGenerate" in methods.split()
    body = '{"spec": {"tokenIds": {"ids": [1, 2]}, "sampling": {"maxNewTokens": 3, "seed": 1}}}'
    url = f"http://{server.address}/vdiff.v1.GenerationService/Generate"
    reply = json.loads(buf_curl(server, "-d", body, url))
    assert len(reply["outputs"][0]["tokens"]["ids"]) == 3
