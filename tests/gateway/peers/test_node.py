"""OpenAI's package for Node, from npm, once: its streams and errors are other code than Python's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import RunningServer
from tests.fetched import kept, ours, run
from tests.gateway.conftest import RunningGateway, eventually

SCRIPT = Path(__file__).parent / "node" / "client.mjs"
PACKAGE = "openai@7.57.0"


@pytest.fixture
def package() -> Path:
    """A folder with the package installed."""
    install = (ours("npm"), "install", "--no-audit", "--no-fund", "--prefix", ".", PACKAGE)
    return kept(f"npm-{PACKAGE}", lambda folder: run(folder, *install))


def test_nodes_client_works(package: Path, gateway: RunningGateway, demo: RunningServer) -> None:
    aborted = demo.statistics().requests_aborted
    script = shutil.copy(SCRIPT, package)  # its imports are looked for beside it
    done = subprocess.run(
        [ours("node"), script, f"{gateway.url}/v1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    parts = re.findall(r"^  async (\w+)\(", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == parts
    # Who aborts frees the row.
    eventually(lambda: demo.statistics().requests_aborted == aborted + 1)
