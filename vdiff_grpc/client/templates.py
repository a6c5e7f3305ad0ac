r"""Infill templates written as text: `Tom had a {{2}} ball. He {{2..12}} went home.`

    {{4}}                            a hole of 4 positions
    {{2..12}}                        one whose length is chosen, from 2 to 12
    {{3:regex=[0-9]+}}               one that is filled with what matches
    {{1..3:choice=red|dark blue}}    with one of these
    {{40:json_schema={"type": ...}}} with JSON that the schema allows
    \{{                              the braces themselves; \\{{4}} is a backslash and a hole

The playground reads the same: template.js.
"""

from __future__ import annotations

import json
import re

from vdiff_grpc import v1
from vdiff_grpc.client.constraints import choice, json_schema, regex
from vdiff_grpc.client.requests import Segment, hole

# Of more than two braces the last two open the hole.
_OPENING = re.compile(r"(\\*)(\{{2,})")
_LENGTH = re.compile(r"(?:(\d{1,9})\.\.)?(\d{1,9})(\}\}|:(regex|choice|json_schema)=)", re.ASCII)
# A regex may end with braces of its own, as in {{4:regex=[0-9]{2}}}: the last two close the hole.
_CLOSING = re.compile(r"\}\}(?!\})")
_BRACES = re.compile(r"(?=\}\})")  # of JSON it is told by what stands before them
_SHOWN = 40


def template(text: str) -> list[Segment]:
    """The segments of a template. ValueError for one without a hole, or with one that is not."""
    segments: list[Segment] = []
    given = ""
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        slashes, braces = opening.groups()
        given += text[position : opening.start()] + slashes[: len(slashes) // 2]
        position = opening.end()
        if len(slashes) % 2:
            given += braces
            continue
        given += braces[2:]
        found, position = _hole(text, position)
        segments += [given, found] if given else [found]
        given = ""
    if not segments:
        raise ValueError(
            "the template has no hole: {{4}} is one of 4 positions, {{2..9}} of 2 to 9"
        )
    given += text[position:]
    return [*segments, given] if given else segments


def _hole(text: str, begin: int) -> tuple[v1.Hole, int]:
    """The hole whose inside begins there, and where what follows begins."""
    head = _LENGTH.match(text, begin)
    if head is None:
        raise ValueError(
            f"{_shown(text, begin)} is not a hole, which is {{{{4}}}}, {{{{2..9}}}} or "
            r"{{4:regex=...}}, {{4:choice=a|b}}, {{4:json_schema=...}}; \{{ is the braces themselves"
        )
    least, most, _, kind = head.groups()
    constraint, position = (None, head.end()) if kind is None else _constraint(text, head)
    if least is None:
        return hole(int(most), constraint=constraint), position
    return hole(min_length=int(least), max_length=int(most), constraint=constraint), position


def _constraint(text: str, head: re.Match[str]) -> tuple[v1.Constraint, int]:
    kind, pattern = head[4], _BRACES if head[4] == "json_schema" else _CLOSING
    for closing in pattern.finditer(text, head.end()):
        body, end = text[head.end() : closing.start()], closing.start() + 2
        if kind == "regex":
            return regex(body), end
        if kind == "choice":
            return choice(*body.split("|")), end
        if _is_json(body):
            return json_schema(body), end
    what = "JSON and }}" if kind == "json_schema" else "}}"
    raise ValueError(f"{_shown(text, head.start())} does not end with {what}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shown(text: str, begin: int) -> str:
    whole = "{{" + text[begin:]
    return whole if len(whole) <= _SHOWN else whole[:_SHOWN] + "..."
