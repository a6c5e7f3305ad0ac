"""schemathesis makes requests from a document and checks the replies by it: ours, and OpenAI's.

The same requests every time. The server is small, so that its limits are soon reached.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import running, tiny_config
from tests.gateway.conftest import RunningGateway
from tests.gateway.peers import openai_document

# Two thousand requests and more; under a minute where nothing else runs.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def small() -> Iterator[RunningGateway]:
    limits = {"default_max_new_tokens": 1, "max_canvas_tokens": 64, "max_n": 4}
    queue = {"max_running_rows": 8, "max_waiting_rows": 8}
    with running(tiny_config(model="demo", served_model_name=(), **limits, **queue)) as server:
        gateway = RunningGateway(server.address)
        yield gateway
        gateway.close()


def schemathesis(*arguments: str) -> str:
    """What it prints when it has found nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}", "run", "--no-color",
         "--checks=all", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_our_own_document_is_true_in_every_check(small: RunningGateway) -> None:
    said = schemathesis(f"{small.url}/openapi.json")
    selected = re.search(r"Operations: +(\d+) selected / (\d+) total", said)
    assert selected
    assert selected[1] == selected[2]
    generated = re.search(r"(\d+) generated, (\d+) passed", said)
    assert generated
    assert int(generated[1]) == int(generated[2]) > 1500


def answered(report: Path, path: str) -> int:
    """How many requests to `path` got 200."""
    count = 0
    for line in report.read_text(encoding="utf-8").splitlines():
        event = json.loads(line).get("ScenarioFinished")
        for exchange in event["recorder"].get("interactions", {}).values() if event else ():
            if exchange["request"]["uri"].endswith(path):
                count += exchange["response"]["status_code"] == 200
    return count


@pytest.mark.parametrize(
    ("document", "at_least"),
    [(openai_document.whole, 5), (openai_document.supported, 80)],
    ids=["whole", "supported"],
)
def test_what_openais_document_allows_is_answered_as_it_says_or_refused_by_name(
    small: RunningGateway, tmp_path: Path, document: Any, at_least: int
) -> None:
    path, report = tmp_path / "openai.json", tmp_path / "report.ndjson"
    path.write_text(json.dumps(document("vdiff-demo")), encoding="utf-8")
    schemathesis(
        str(path),
        f"--url={small.url}/v1",
        "--mode=positive",
        # It names no status but 200. That all it allows is accepted is checked by our own check.
        "--exclude-checks=status_code_conformance,positive_data_acceptance",
        f"--report-ndjson-path={report}",
    )
    assert answered(report, "/chat/completions") >= at_least
    assert answered(report, "/v1/completions") >= at_least
