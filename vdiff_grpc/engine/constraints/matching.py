"""Whether a schema's pattern is found in a name. Knows no schema.

Python's own search can take any time; this takes what the pattern's and the name's lengths allow.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
from contextvars import ContextVar
from typing import Any

from vdiff_grpc.engine.constraints.kinds import ConstraintError, TooLargeError
from vdiff_grpc.engine.constraints.patterns import alternatives, parsed

_BLANK = r"[\s\ufeff\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_CATEGORIES = {
    sre.CATEGORY_DIGIT: ("[0-9]", True),
    sre.CATEGORY_NOT_DIGIT: ("[0-9]", False),
    sre.CATEGORY_WORD: ("[A-Za-z0-9_]", True),
    sre.CATEGORY_NOT_WORD: ("[A-Za-z0-9_]", False),
    sre.CATEGORY_SPACE: (_BLANK, True),
    sre.CATEGORY_NOT_SPACE: (_BLANK, False),
}
MOST_LOOKS = 200000  # at characters, for one schema; a fraction of a second

_left: ContextVar[int] = ContextVar("_left", default=MOST_LOOKS)
_Known = dict[tuple[int, int], frozenset[int]]


def begin(share: int) -> None:
    """A schema of this thread begins, one of so many that share the work."""
    _left.set(MOST_LOOKS // share)


def _look(count: int, path: str) -> None:
    _left.set(_left.get() - count)
    if _left.get() < 0:
        raise TooLargeError(path, "patterns and names ask for too much work")


def is_found(pattern: str, text: str, path: str) -> bool:
    """Whether it is found in the text; in time that no pattern makes long. Raises ConstraintError."""
    known: _Known = {}
    free = range(len(text) + 1)
    for items in alternatives(parsed(pattern, path)):
        at_begin = bool(items) and items[0] == (sre.AT, sre.AT_BEGINNING)
        at_end = bool(items) and items[-1] == (sre.AT, sre.AT_END)
        inner = items[at_begin : len(items) - at_end]
        for begin in free[:1] if at_begin else free:
            ends = _ends(inner, text, begin, known, path)
            if len(text) in ends if at_end else ends:
                return True
    return False


def _ends(items: Any, text: str, begin: int, known: _Known, path: str) -> frozenset[int]:
    """Where matches of the items that begin there end."""
    ends = frozenset((begin,))
    for item in items:
        _look(len(ends), path)
        for start in ends:
            if (id(item), start) not in known:
                known[id(item), start] = _ends_of(item, text, start, known, path)
        ends = frozenset(end for start in ends for end in known[id(item), start])
    return ends


def _ends_of(item: Any, text: str, begin: int, known: _Known, path: str) -> frozenset[int]:
    kind, value = item
    if kind is sre.BRANCH:
        return frozenset().union(*(_ends(b, text, begin, known, path) for b in value[1]))
    if kind is sre.SUBPATTERN and not value[1] and not value[2]:
        return _ends(value[3], text, begin, known, path)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = value
        newest, found = frozenset((begin,)), frozenset((begin,) if low == 0 else ())
        for count in range(1, min(high, low + len(text) + 1) + 1):
            _look(len(newest), path)
            newest = frozenset(e for s in newest for e in _ends(inner, text, s, known, path))
            if count >= low:
                newest -= found
                found |= newest
            if not newest:
                break
        return found
    if begin < len(text) and _is_one(kind, value, text[begin], path):
        return frozenset((begin + 1,))
    return frozenset()


def _is_one(kind: Any, value: Any, char: str, path: str) -> bool:
    """Whether a character is as one item says, in ECMAScript's sense."""
    if kind is sre.LITERAL:
        return bool(ord(char) == value)
    if kind is sre.NOT_LITERAL:
        return bool(ord(char) != value)
    if kind is sre.ANY:
        return char not in "\n\r\u2028\u2029"
    if kind is sre.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    if kind is sre.CATEGORY and value in _CATEGORIES:
        pattern, is_in = _CATEGORIES[value]
        return (re.match(pattern, char, re.ASCII) is not None) is is_in
    if kind is sre.IN:
        negated = value[0][0] is sre.NEGATE
        return any(_is_one(k, v, char, path) for k, v in value[negated:]) is not negated
    raise ConstraintError(path, f"pattern: {str(kind).lower()} is not supported")
