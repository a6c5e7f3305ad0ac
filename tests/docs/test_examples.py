"""docs/examples: built with the commands of docs/contract.md, they say what the server says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import running, tiny_config
from tests.docs import toolchains
from tests.docs.commands import GRPC, blocks, checkout, run
from vdiff_grpc import keys
from vdiff_grpc.client import Client, confidence_threshold


@dataclass(frozen=True)
class Asked:
    """A server that wants a key, and what each example has to print of it."""

    address: str
    key: str
    answer: str

    def assert_told_by(self, printed: str) -> None:
        text, streamed, code, field = printed.splitlines()
        assert text == streamed == self.answer
        # Every language writes the code's name in its own way.
        assert re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper() == "INVALID_ARGUMENT INVALID_FIELD"
        assert field == "spec.sampling.max_new_tokens"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    file, key = tmp_path_factory.mktemp("keys") / "keys.json", keys.new_key()
    file.write_text(json.dumps({"keys": [{"name": "example", "sha256": [keys.digest(key)]}]}))
    config = tiny_config(model="demo", served_model_name=(), api_keys=str(file))
    with running(config) as server, Client(server.address, api_key=key) as client:
        reply = client.generate(
            "Once upon a time", max_new_tokens=24, seed=7, strategy=confidence_threshold(0.95)
        )
        yield Asked(server.address, key, reply.outputs[0].text)


def commands_of(language: str) -> list[str]:
    (block,) = (b for b in blocks("sh") if f"docs/examples/{language}" in b.text)
    return block.commands


def told(asked: Asked, lines: list[str], folder: Path, **environment: str) -> str:
    environment["VDIFF_API_KEY"] = asked.key
    return run(lines, folder, {GRPC: asked.address}, environment)


def test_python_asks(asked: Asked, tmp_path: Path) -> None:
    asked.assert_told_by(told(asked, commands_of("python"), checkout(tmp_path)))


@pytest.mark.timeout(240)  # packages may have to be fetched
def test_typescript_is_generated_compiled_and_asks(asked: Asked, tmp_path: Path) -> None:
    folder = checkout(tmp_path) / "docs" / "examples" / "typescript"
    (folder / "node_modules").symlink_to(toolchains.node_modules(folder / "package.json"))
    lines = commands_of("typescript")
    fetch = [line for line in lines if line.startswith("npm install")]
    assert len(fetch) == 1  # done above, once for all runs
    asked.assert_told_by(told(asked, [line for line in lines if line not in fetch], tmp_path))


@pytest.mark.long
@pytest.mark.timeout(600)  # the toolchain is fetched, and Go's library compiled, once
def test_go_is_generated_compiled_and_asks(asked: Asked, tmp_path: Path) -> None:
    # Without modules an import path is a folder under GOPATH.
    home = checkout(tmp_path) / "src" / "example.com" / "vdiff"
    home.parent.mkdir(parents=True)
    (tmp_path / "docs" / "examples" / "go").rename(home)
    (tmp_path / "docs" / "examples" / "go").symlink_to(home)
    lines = [line for line in commands_of("go") if not re.match(r"go (mod|install) ", line)]
    assert len(lines) == 3
    # A symbolic link has another parent than its name says.
    lines = [line.replace("../../../", f"{tmp_path}/") for line in lines]
    lines[0] = f"cd {home}"
    asked.assert_told_by(told(asked, lines, tmp_path, **toolchains.go(tmp_path)))
