"""docs/troubleshooting.md has every reason of the server and every code of the gateway, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import gateway
from gateway import errors
from tests.docs.commands import page
from vdiff_grpc.server import status

SERVER, GATEWAY = (
    part.partition("\n## ")[0]
    for part in page("troubleshooting.md")
    .split("## The server's reasons")[1]
    .split("## The gateway's codes")
)


def _rows(text: str) -> list[tuple[str, str]]:
    """The first two cells of each row that begins with code."""
    return re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", text, re.M)


def test_every_reason_of_the_server_is_there_with_its_status() -> None:
    told = {reason.strip("`"): code for reason, code in _rows(SERVER)}
    assert told == {error.reason: status._CODES[error].name for error in status.EXPECTED}


def _codes() -> Iterator[str]:
    """What stands as a `code` in the gateway's calls of its error makers."""
    yield from (code for _, _, code in errors._STATUS.values() if code)
    for path in Path(gateway.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                values += [k.value for k in node.keywords if k.arg == "code"]
                if node.func.id == "invalid":
                    values += node.args[2:3]
            elif isinstance(node, ast.Assign):
                names = ast.dump(node.targets[0])
                if "'api_code'" in names or names.startswith("Name(id='code'"):
                    values.append(node.value)
            for value in values:
                for part in ast.walk(value):
                    # In `a == b` a string is compared, not given.
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def test_every_code_of_the_gateway_is_there() -> None:
    told = {code for cell, _ in _rows(GATEWAY) for code in re.findall(r"`([a-z_]+)`", cell)}
    # "model" is the param that stands beside model_not_found; ", got " tells two codes apart.
    given = set(_codes()) - {"model", ", got "}
    assert told == given


def test_the_http_statuses_are_the_gateways() -> None:
    told = {
        code: int(http)
        for cell, http in _rows(GATEWAY)
        for code in re.findall(r"`([a-z_]+)`", cell)
    }
    for http, _, code in errors._STATUS.values():
        if code:
            assert told[code] == http
