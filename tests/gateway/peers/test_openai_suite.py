"""openai-python's own tests, unmodified, against our gateway.

They come with the source distribution of the installed release, which is fetched once into
pytest's cache. Of their 43 tests (sync and async, loose and strict, and over aiohttp: 215) 115
apply. The others are run too: they must fail, and for the reason that stands here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import running, tiny_config
from tests.fetched import kept, run
from tests.gateway.conftest import RunningGateway

FILES = (
    "tests/api_resources/test_completions.py",
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_models.py",
)
# Five ways to call each: two sync, three async.
APPLY, ALL = 23 * 5, 43 * 5

# By file and a pattern of the test's name: why it cannot pass, and the client's error.
NOT_OURS = {
    # best_of 0 and penalties of -2: a diffusion model has no penalties.
    ("test_completions", r"create_with_all_params"): "BadRequestError: Error code: 400",
    # audio and functions: not supported.
    ("chat.test_completions", r"create_with_all_params"): "BadRequestError: Error code: 400",
    # Stored conversations: nothing is stored.
    ("chat.test_completions", r"(method|response)_(retrieve|update|delete)"): (
        "NotFoundError: Error code: 404"
    ),
    ("chat.test_completions", r"(method|response)_list"): "APIStatusError: Error code: 405",
    # Deleting the model that is served.
    ("test_models", r"(method|response)_delete"): "APIStatusError: Error code: 405",
}


@pytest.fixture(scope="module")
def suite() -> Path:
    """The unpacked source distribution of the installed openai."""
    name = f"openai-{version('openai')}"

    def fetch(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=openai")
        run(folder, *pip, f"openai=={version('openai')}")
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")

    return kept(f"{name}-tests", fetch) / name


def test_what_applies_passes_and_the_rest_is_refused_for_the_stated_reason(
    suite: Path, tmp_path: Path
) -> None:
    source = "".join((suite / file).read_text(encoding="utf-8") for file in FILES)
    models = tuple(sorted(set(re.findall(r'"(gpt-[^"]+)"', source))))
    report = tmp_path / "report.xml"
    config = tiny_config(model="demo", served_model_name=models, default_max_new_tokens=4)
    with running(config) as server:
        gateway = RunningGateway(server.address)
        try:
            done = subprocess.run(
                # Their addopts want a plugin for running in parallel.
                [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider",
                 "--tb=line", "--show-capture=no", f"--junitxml={report}", *FILES],
                cwd=suite,
                env=os.environ | {"TEST_API_BASE_URL": f"{gateway.url}/v1"},
                capture_output=True, text=True, check=False, timeout=110,
            )  # fmt: skip
        finally:
            gateway.close()
    assert report.exists(), done.stdout + done.stderr

    passed, used = 0, set()
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        file = case.attrib["classname"].removeprefix("tests.api_resources.").rpartition(".")[0]
        name = case.attrib["name"]
        outcome = next((child for child in case if child.tag != "system-out"), None)
        expected = {k: e for k, e in NOT_OURS.items() if k[0] == file and re.search(k[1], name)}
        if not expected:
            assert outcome is None, f"{file} {name}: {outcome.attrib}"
            passed += 1
            continue
        assert outcome is not None, f"{file} {name} passes: it applies now"
        ((key, error),) = expected.items()
        assert error in outcome.attrib["message"], f"{file} {name}"
        used.add(key)
    assert (passed, len(cases)) == (APPLY, ALL)
    assert used == set(NOT_OURS)
