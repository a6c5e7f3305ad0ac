"""Regexes of what stands between the quotes of a JSON string. Knows no schema.

A pattern of a schema is read by Python's parser of regexes and written anew for Rust's, over
characters that need no escape in JSON: so whatever is written means what it says.
"""

from __future__ import annotations

import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from re import error as re_error
from typing import Any

from vdiff_grpc.engine.constraints.kinds import ConstraintError
from vdiff_grpc.engine.constraints.literals import literal

__all__ = ["CHARACTER", "FORMATS", "literal", "pattern_regex"]

_PLAIN = r'[^"\\\x00-\x1f\x7f]'
CHARACTER = rf'(?:{_PLAIN}|\\["\\/bfnrt])'
_UNSAFE = r'"\\\x00-\x1f\x7f'
_MAX_REPEAT = 4096

_DATE = "(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-2]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "email": r"[A-Za-z0-9_%+-]{1,32}(?:\.[A-Za-z0-9_%+-]{1,32})?@[A-Za-z0-9]{1,32}(?:\.[A-Za-z0-9]{1,32})?\.[A-Za-z]{2,8}",
}

_CATEGORIES = {
    sre.CATEGORY_DIGIT: "0-9",
    sre.CATEGORY_WORD: "A-Za-z0-9_",
    sre.CATEGORY_SPACE: " ",
}
_NEGATED = {
    sre.CATEGORY_NOT_DIGIT: "0-9",
    sre.CATEGORY_NOT_WORD: "A-Za-z0-9_",
    sre.CATEGORY_NOT_SPACE: r"\s",
}


def pattern_regex(pattern: Any, path: str) -> str:
    """Strings in which the pattern is found. Raises ConstraintError."""
    if not isinstance(pattern, str):
        raise ConstraintError(path, "pattern must be a string")
    try:
        parsed = list(parser.parse(pattern, 0))
    except (re_error, RecursionError, OverflowError) as error:
        raise ConstraintError(path, f"pattern cannot be read: {error}") from error
    if len(parsed) == 1 and parsed[0][0] is sre.BRANCH:
        branches = [list(branch) for branch in parsed[0][1][1]]
    else:
        branches = [parsed]
    return f"(?:{'|'.join(_found(branch, path) for branch in branches)})"


def _found(items: list[Any], path: str) -> str:
    """One alternative, anywhere unless it says where."""
    before = after = f"{CHARACTER}*"
    if items and items[0] == (sre.AT, sre.AT_BEGINNING):
        before, items = "", items[1:]
    if items and items[-1] == (sre.AT, sre.AT_END):
        after, items = "", items[:-1]
    return before + _written(items, path) + after


def _written(items: Any, path: str) -> str:
    return "".join(_item(kind, value, path) for kind, value in items)


def _item(kind: Any, value: Any, path: str) -> str:
    if kind is sre.LITERAL:
        if chr(value) in '"\\' or value < 0x20 or value == 0x7F:
            raise ConstraintError(path, f"pattern: {chr(value)!r} needs an escape in JSON")
        return literal(chr(value))
    if kind is sre.NOT_LITERAL:
        return f"[^{_UNSAFE}{_point(value)}]"
    if kind is sre.ANY:
        return _PLAIN
    if kind is sre.IN:
        return _class(value, path)
    if kind is sre.BRANCH:
        return f"(?:{'|'.join(_written(branch, path) for branch in value[1])})"
    if kind is sre.SUBPATTERN and not value[1] and not value[2]:
        return f"(?:{_written(value[3], path)})"
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = value
        if low > _MAX_REPEAT or (high is not sre.MAXREPEAT and high > _MAX_REPEAT):
            raise ConstraintError(path, f"pattern repeats more than {_MAX_REPEAT} times")
        most = "" if high is sre.MAXREPEAT else str(high)
        return f"(?:{_written(inner, path)}){{{low},{most}}}"
    raise ConstraintError(path, f"pattern: {str(kind).lower()} is not supported")


def _class(items: list[Any], path: str) -> str:
    negated = bool(items) and items[0][0] is sre.NEGATE
    written = ""
    for kind, value in items[negated:]:
        if kind is sre.LITERAL:
            written += _point(value)
        elif kind is sre.RANGE:
            written += f"{_point(value[0])}-{_point(value[1])}"
        elif kind is sre.CATEGORY and value in _CATEGORIES:
            # what must not stand there is excluded widely
            written += r"\s" if negated and value is sre.CATEGORY_SPACE else _CATEGORIES[value]
        elif kind is sre.CATEGORY and not negated and len(items) == 1:
            return f"[^{_UNSAFE}{_NEGATED[value]}]"
        else:
            raise ConstraintError(path, "pattern: this class of characters is not supported")
    return f"[^{_UNSAFE}{written}]" if negated else f"[[{written}]--[{_UNSAFE}]]"


def _point(value: int) -> str:
    if 0xD800 <= value <= 0xDFFF:
        raise ConstraintError("", "pattern: half a character")
    return f"\\x{{{value:x}}}"
