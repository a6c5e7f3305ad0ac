"""Writes docs/configuration.md from the options that server and gateway have in their code.

python -m docs.make_configuration
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from gateway import config as gateway
from vdiff_grpc import config as server
from vdiff_grpc.cli import flags as cli

PAGE = Path(__file__).parent / "configuration.md"
_TITLES = ("flag", "variable", "allowed", "default", "meaning")

_PAGE = """\
# Configuration

Written by `python -m docs.make_configuration` from `vdiff_grpc/config.py` and `gateway/config.py`; do not
edit. A flag wins over its variable, an empty variable counts as unset, and a wrong value ends the program
with code 2 and a line that names it. Everything is read once, at the start; files that are "read again"
are, without a restart. What the options do together: [operations.md](operations.md) (life, limits, faults),
[security.md](security.md) (keys, TLS), [gpu.md](gpu.md) (memory). Exporters are told by OpenTelemetry's own
variables: [telemetry.md](telemetry.md).

## The server: `vdiff-grpc serve`

`vdiff-grpc run` takes the same, `--address HOST:PORT` in place of `--host` and `--port`, and
`--gateway-address`; the gateway that it starts is set by the gateway's variables.

{server}

## The gateway: `vdiff-gateway`

{gateway}

## The commands that call a server

`vdiff-grpc generate`, `watch` and `health` have their flags in `--help`. These stand in for them:

{client}
"""


def page() -> str:
    return _PAGE.format(
        server=_table(map(_of_server, fields(server.ServerConfig))),
        gateway=_table(map(_of_gateway, fields(gateway.GatewayConfig))),
        client=_table(
            (
                (cli.ADDRESS_VARIABLE, "`--address`"),
                (cli.CA_VARIABLE, "`--tls-ca`"),
                (cli.KEY_VARIABLE, "the API key, which no flag takes; or `--api-key-file`"),
            ),
            ("variable", "stands for"),
        ),
    )


def _of_server(option: Field[Any]) -> tuple[str, ...]:
    return (
        server._flag(option),
        server._variable(option),
        _words(server._allowed(option)),
        server._shown(option.default),
        server._rule(option).help,
    )


def _of_gateway(setting: Field[Any]) -> tuple[str, ...]:
    choices = ", ".join(setting.metadata["choices"])
    kind = {int: "a whole number", float: "a number", str: "any text"}[type(setting.default)]
    return (
        "--" + setting.name.replace("_", "-"),
        gateway.ENV_PREFIX + setting.name.upper(),
        _words(f"one of {choices}" if choices else kind),
        str(setting.default),
        setting.metadata["help"],
    )


def _words(allowed: str) -> str:
    return "" if allowed == "any text" else allowed


def _table(rows: Iterable[tuple[str, ...]], titles: tuple[str, ...] = _TITLES) -> str:
    """The columns that are code are those of flags, variables and defaults."""
    code = {"flag", "variable", "default"}
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = (
            f"`{cell}`" if title in code and cell else cell.replace("|", "\\|")
            for title, cell in zip(titles, row, strict=True)
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
