"""Every command of the documents is run, or parsed, or stands in a short list with its reason.

Those of docs/deployment.md are also read by tests/helm/test_rendered_runs.py, those of
docs/routers.md by tests/service, those that build docs/examples are run by test_examples.py.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from gateway.config import GatewayConfig, load_config
from tests.docs.commands import GRPC, HTTP, PAGES, ROOT, Block, blocks, checkout, run
from tests.engine.tools import TINY
from tests.gateway.conftest import RunningGateway
from vdiff_grpc import config
from vdiff_grpc.cli import main as cli

SHELL = blocks("sh")
PYTHON = blocks("python")

# What is not run, by how it begins, and why.
NOT_RUN = {
    r"pip install ": "the reader's own environment",
    r"python3 -m venv guidellm|HF_HUB_OFFLINE=1 guidellm": "a load tool, run by hand for its table",
    r"docker |helm |kubectl ": "no cluster: understood by tests/helm/test_rendered_runs.py",
    r"grpcurl ": "no registry has it; buf curl says the same to the server",
    r"\S*pytest ": "tests within a test: they are run by themselves, and have to be there",
    r"npm |npx |node |go ": "run by tests/docs/test_examples.py",
}
# Flags of other programs that the text names.
OTHERS = {"--model-server-metrics-port"}
_SERVES = re.compile(r"(\.venv/bin/)?vdiff-(grpc (serve|run)|gateway)\b")

# What a fragment takes for granted.
BEFORE = {
    "docs/client.md:try:": f"""
import time
from vdiff_grpc.client import Client, ResourceExhaustedError
client, prompt = Client("{GRPC}"), "Once upon a time"
""",
}


@pytest.fixture(scope="module")
def addresses(demo_address: str) -> Iterator[dict[str, str]]:
    """From what the documents say to what is there."""
    gateway = RunningGateway(demo_address)
    http = gateway.url.removeprefix("http://")
    yield {GRPC: demo_address, HTTP: http, "/models/LLaDA-8B-Instruct": str(TINY)}
    gateway.close()


def _is_run(command: str) -> bool:
    excepted = any(re.match(pattern, command) for pattern in NOT_RUN)
    return not (excepted or _SERVES.match(command) or re.search(r"\bmake ", command))


def _lines(block: Block) -> list[str]:
    if "cd docs/examples" in block.text:
        return []
    return [command for command in block.commands if _is_run(command)]


@pytest.mark.parametrize("block", [b for b in SHELL if _lines(b)], ids=str)
def test_a_block_of_commands_does_what_it_says(
    block: Block, addresses: dict[str, str], tmp_path: Path
) -> None:
    lines = [re.sub(r"^curl ", "curl --fail-with-body ", line) for line in _lines(block)]
    environment = {"VDIFF_ADDRESS": addresses[GRPC], "VDIFF_API_KEY": ""}
    printed = run(lines, checkout(tmp_path), addresses, environment)
    assert printed.strip()
    assert '"error"' not in printed


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_program_of_the_documents_runs(
    block: Block, addresses: dict[str, str], tmp_path: Path
) -> None:
    program = BEFORE.get(str(block), "") + block.text
    for told, real in addresses.items():
        program = program.replace(told, real)
    (tmp_path / "program.py").write_text(program)
    printed = run([f"cd {tmp_path}", "python program.py"], tmp_path, {})
    assert printed.strip() or str(block) in BEFORE


def _told() -> Iterator[tuple[str, str]]:
    """Every command of ours: in blocks, whatever their language, and in the running text."""
    ours = re.compile(r"(?:\.venv/bin/)?(vdiff-(?:grpc|gateway)\b.*)")
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"^ *```(?:sh)?\n(.*?)^ *```", text, re.M | re.S):
            for line in Block(page.name, "", block).commands:
                for command in line.split(" & "):
                    if match := ours.fullmatch(command):
                        yield page.name, match[1]
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
        for span in re.findall(r"`(vdiff-[^`]+ [^`]+)`", " ".join(prose.split())):
            if match := ours.fullmatch(span):
                yield page.name, match[1]


def test_commands_have_the_flags_that_they_are_told_with() -> None:
    told = sorted(set(_told()))
    assert len(told) > 20
    for page, command in told:
        words = shlex.split(command)
        # A command that is only named: what it needs is not said.
        if words in (["vdiff-grpc", "keys"], ["vdiff-grpc", "generate"]):
            continue
        assert _exit_code(words) == 0, f"{page}: {command}"


def _exit_code(words: list[str]) -> object:
    """What the program would end with for its flags alone."""
    try:
        if words[0] == "vdiff-gateway":
            load_config(words[1:], {})
        else:
            args = cli._parser().parse_args(words[1:])
            if words[1] in ("serve", "run"):
                config.from_flags(args, {})
    except SystemExit as ended:  # --help, or a wrong flag
        return ended.code
    return 0


def test_every_target_of_make_is_there() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    told = {target for target in re.findall(r"^[A-Z_=0-9 ]*make (\w[\w-]*)|`make (\w[\w-]*)", text, re.M) for target in target if target}  # fmt: skip
    assert told >= {"run", "test", "demo"}
    for target in sorted(told):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (target, done.stderr)


def test_every_path_of_the_repository_that_is_named_is_there() -> None:
    # NAME is what the reader calls it; the other is a folder of openai-python's.
    path = re.compile(
        r"(?<![\w/.-])((?:tests|vdiff_grpc|gateway|benchmarks|proto|helm)/[\w/.-]+\w)"
    )
    for page in PAGES:
        for found in path.findall(page.read_text()):
            known = "NAME" in found or found == "tests/api_resources"
            assert known or (ROOT / found).exists(), f"{page.name}: {found}"


def test_every_exception_still_excepts_something() -> None:
    commands = [command for block in SHELL for command in block.commands]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in commands), pattern


def test_every_flag_in_the_text_exists() -> None:
    ours = {"--" + option.name.replace("_", "-") for option in fields(GatewayConfig)}
    ours |= set(_flags(cli._parser()))
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
        for flag in re.findall(r"`(--[a-z][a-z0-9-]*)(?=[`= ])", prose):
            assert flag in ours | OTHERS, f"{page.name}: {flag}"


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _flags(part)
