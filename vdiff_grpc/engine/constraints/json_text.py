"""Regexes of JSON text from the regexes of its parts. Knows no schema."""

from __future__ import annotations

from collections.abc import Iterable

from vdiff_grpc.engine.constraints.numbers import numbers
from vdiff_grpc.engine.constraints.strings import CHARACTER

COMMA, COLON = ", ?", ": ?"

_STRING = f'"{CHARACTER}*"'
_SCALAR = f"(?:{_STRING}|{numbers({})}|true|false|null)"


def sequence(pairs: list[tuple[str, bool]]) -> str:
    """Pairs in order, with commas between those that are there; some must be."""
    musts = [number for number, (_, must) in enumerate(pairs) if must]
    if musts:
        first = musts[0]
        before = "".join(f"(?:{pair}{COMMA})?" for pair, _ in pairs[:first])
        after = [
            COMMA + pair if must else f"(?:{COMMA}{pair})?" for pair, must in pairs[first + 1 :]
        ]
        return before + pairs[first][0] + "".join(after)
    written = ""
    for number in reversed(range(len(pairs))):  # the first that is there
        more = "".join(f"(?:{COMMA}{pair})?" for pair, _ in pairs[number + 1 :])
        written = f"{pairs[number][0]}{more}" + (f"|{written}" if written else "")
    return f"(?:{written})?"


def anything(depth: int) -> str:
    if not depth:
        return _SCALAR
    inner = anything(depth - 1)
    return rf"(?:{_SCALAR}|\[(?:{inner}(?:{COMMA}{inner})*)?\]|{free_object(inner)})"


def free_object(value: str) -> str:
    pair = f"{_STRING}{COLON}{value}"
    return rf"\{{(?:{pair}(?:{COMMA}{pair})*)?\}}"


def one_of(parts: Iterable[str]) -> str:
    return f"(?:{'|'.join(parts)})"


def times(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"
