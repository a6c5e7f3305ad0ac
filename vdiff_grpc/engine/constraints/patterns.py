"""Regexes of strings in which a schema's pattern is found. Knows no schema.

A pattern is read by Python's parser of regexes and written anew for Rust's, over characters that need
no escape in JSON, unless it names them: so whatever is written means what it says.
"""

from __future__ import annotations

import json
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError
from vdiff_grpc.engine.constraints.literals import CHARACTER, literal, times

_UNSAFE = r'"\\\x00-\x1f\x7f'
_MAX_REPEAT = 4096
_QUIET = threading.Lock()  # warnings are caught for the whole process

_CATEGORIES = {
    sre.CATEGORY_DIGIT: "0-9",
    sre.CATEGORY_WORD: "A-Za-z0-9_",
    sre.CATEGORY_SPACE: " ",
}
_BLANK = r"\s\x{feff}"  # what any reader of regexes takes for blank
_NEGATED = {
    sre.CATEGORY_NOT_DIGIT: "0-9",
    sre.CATEGORY_NOT_WORD: "A-Za-z0-9_",
    sre.CATEGORY_NOT_SPACE: _BLANK,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an alternative. low, high: its characters; high None: any number.

    each: what it repeats, where that is one character.
    """

    written: str
    low: int
    high: int | None
    each: str = ""

    def resized(self, low: int, high: int | None) -> _Piece:
        return _Piece(f"(?:{self.each}){times(low, high)}", low, high, self.each)


def pattern_regex(pattern: Any, path: str, low: int = 0, high: int | None = None) -> str:
    """Strings of so many characters in which the pattern is found.

    Raises ConstraintError, and NoValueError where there is none.
    """
    if not isinstance(pattern, str):
        raise ConstraintError(path, "pattern must be a string")
    if re.search(r"\{,[0-9]*\}", pattern):
        raise ConstraintError(path, "pattern: {,n} has more than one meaning")
    items = parsed(pattern, path)
    found = [_joined(_sized(_pieces(b, path), low, high, path)) for b in alternatives(items)]
    written = [part for part in found if part is not None]
    if not written:
        raise NoValueError(path, "no string of this length matches the pattern")
    return f"(?:{'|'.join(written)})"


def parsed(pattern: str, path: str) -> list[Any]:
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions of Python may mean
            return list(parser.parse(pattern, 0))
    except (re.error, RecursionError, OverflowError) as error:
        raise ConstraintError(path, f"pattern cannot be read: {error}") from error


def alternatives(items: list[Any]) -> list[list[Any]]:
    """Of the whole pattern, also where they stand in a group around it."""
    while len(items) == 1 and items[0][0] is sre.SUBPATTERN and not any(items[0][1][1:3]):
        items = list(items[0][1][3])
    if len(items) == 1 and items[0][0] is sre.BRANCH:
        return [found for branch in items[0][1][1] for found in alternatives(list(branch))]
    return [items]


def _pieces(items: list[Any], path: str) -> list[_Piece]:
    """One alternative, anywhere unless it says where."""
    free = _Piece(f"{CHARACTER}*", 0, None, CHARACTER)
    before, after = [free], [free]
    while items and items[0] == (sre.AT, sre.AT_BEGINNING):
        before, items = [], items[1:]
    while items and items[-1] == (sre.AT, sre.AT_END):
        after, items = [], items[:-1]
    found = []
    for kind, value in items:
        low, high = parser.SubPattern(parser.State(), [(kind, value)]).getwidth()
        each = ""
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT) and value[2].getwidth() == (1, 1):
            each = _written(value[2], path)
        most = None if high >= sre.MAXREPEAT else high
        found.append(_Piece(_item(kind, value, path), low, most, each))
    return [*before, *found, *after]


def _sized(pieces: list[_Piece], low: int, high: int | None, path: str) -> list[_Piece] | None:
    """The same with at least and at most so many characters; None: there are none."""
    missing = low - sum(piece.low for piece in pieces)
    if missing > 0:
        for number, piece in enumerate(pieces):
            if piece.each and (piece.high is None or piece.high >= piece.low + missing):
                pieces = [*pieces]
                pieces[number] = piece.resized(piece.low + missing, piece.high)
                break
        else:
            raise ConstraintError(path, "pattern cannot stand beside this minLength")
    if high is None:
        return pieces
    if sum(piece.low for piece in pieces) > high:
        return None
    open_ = [number for number, piece in enumerate(pieces) if piece.low != piece.high]
    most = sum(piece.low for piece in pieces if piece.low == piece.high)
    if len(open_) == 1 and pieces[open_[0]].each:
        piece = pieces[open_[0]]
        room = high - most
        top = room if piece.high is None else min(room, piece.high)
        return [*pieces[: open_[0]], piece.resized(piece.low, top), *pieces[open_[0] + 1 :]]
    if any(piece.high is None for piece in pieces) or sum(p.high or 0 for p in pieces) > high:
        raise ConstraintError(path, "pattern cannot stand beside this maxLength")
    return pieces


def _joined(pieces: list[_Piece] | None) -> str | None:
    return None if pieces is None else "".join(piece.written for piece in pieces)


def _written(items: Any, path: str) -> str:
    return "".join(_item(kind, value, path) for kind, value in items)


def _item(kind: Any, value: Any, path: str) -> str:
    if kind is sre.LITERAL:
        if 0xD800 <= value <= 0xDFFF:
            raise ConstraintError(path, "pattern: half a character")
        return literal(json.dumps(chr(value), ensure_ascii=False)[1:-1])
    if kind is sre.NOT_LITERAL:
        return f"[^{_UNSAFE}{_point(value)}]"
    if kind is sre.ANY:
        return rf"[^{_UNSAFE}\x{{2028}}\x{{2029}}]"  # which ECMAScript takes for ends of lines
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
            written += _BLANK if negated and value is sre.CATEGORY_SPACE else _CATEGORIES[value]
        elif kind is sre.CATEGORY and not negated and len(items) == 1:
            return f"[^{_UNSAFE}{_NEGATED[value]}]"
        else:
            raise ConstraintError(path, "pattern: this class of characters is not supported")
    return f"[^{_UNSAFE}{written}]" if negated else f"[[{written}]--[{_UNSAFE}]]"


def _point(value: int) -> str:
    if 0xD800 <= value <= 0xDFFF:
        raise ConstraintError("", "pattern: half a character")
    return f"\\x{{{value:x}}}"
