"""Regexes of JSON text from the regexes of its parts. Knows no schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vdiff_grpc.engine.constraints.literals import CHARACTER, times
from vdiff_grpc.engine.constraints.numbers import numbers

COMMA, COLON = ", ?", ": ?"

STRING = f'"{CHARACTER}*"'
_SCALAR = f"(?:{STRING}|{numbers({})}|true|false|null)"


def sequence(pairs: list[tuple[str, bool]], *, some: bool = False) -> str:
    """Pairs in order, with commas between those that are there; some must be.

    some: at least one of them.
    """
    musts = [number for number, (_, must) in enumerate(pairs) if must]
    if not musts:
        return f"(?:{_some([pair for pair, _ in pairs])}){'' if some else '?'}" if pairs else ""
    first = musts[0]
    before = "".join(f"(?:{pair}{COMMA})?" for pair, _ in pairs[:first])
    after = [COMMA + pair if must else f"(?:{COMMA}{pair})?" for pair, must in pairs[first + 1 :]]
    return before + pairs[first][0] + "".join(after)


def _some(pairs: list[str]) -> str:
    """At least one of them: of the first half and any of the second, or of the second alone."""
    if len(pairs) == 1:
        return pairs[0]
    half = len(pairs) // 2
    rest = "".join(f"(?:{COMMA}{pair})?" for pair in pairs[half:])
    return f"(?:(?:{_some(pairs[:half])}){rest}|{_some(pairs[half:])})"


def anything(depth: int) -> str:
    if not depth:
        return _SCALAR
    inner = anything(depth - 1)
    pair = f"{STRING}{COLON}{inner}"
    return rf"(?:{_SCALAR}|\[(?:{inner}(?:{COMMA}{inner})*)?\]|{free_object(pair, 0, None)})"


def free_object(pair: str, low: int, high: int | None) -> str:
    """low: 0 or 1."""
    some = f"{pair}(?:{COMMA}{pair}){times(0, None if high is None else high - 1)}"
    return rf"\{{{some}\}}" if low else rf"\{{(?:{some})?\}}"


def one_of(parts: Iterable[str]) -> str:
    return f"(?:{'|'.join(parts)})"


def dumped(value: Any) -> str:
    """A value in our form; escaped where it is no text in UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
