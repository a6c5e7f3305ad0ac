"""OpenAI's package for Node, from npm, once: its streams and errors are other code than Python's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually

SCRIPT = Path(__file__).parent / "node" / "client.mjs"
PACKAGE = "openai@7.57.0"


@pytest.fixture
def package(request: pytest.FixtureRequest) -> Path:
    """A folder with the package installed; kept in pytest's cache."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(f"npm-{PACKAGE}")
    if not (folder / "node_modules" / "openai").exists():
        install = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", PACKAGE]
        done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=100)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_nodes_client_works(package: Path, gateway: RunningGateway, demo: RunningServer) -> None:
    aborted = demo.statistics().requests_aborted
    script = shutil.copy(SCRIPT, package)  # its imports are looked for beside it
    done = subprocess.run(
        ["node", script, f"{gateway.url}/v1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    parts = re.findall(r"^  async (\w+)\(", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == parts
    # Who aborts frees the row.
    eventually(lambda: demo.statistics().requests_aborted == aborted + 1)
