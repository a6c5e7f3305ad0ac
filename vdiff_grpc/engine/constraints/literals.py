"""Small regexes that others are made of: text itself, a string's character, a count."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~])")

MAX_CHARS = 1 << 18  # of a schema's regex; longer ones had too many states
PLAIN = r'[^"\\\x00-\x1f\x7f]'  # a character that JSON needs not escape
CHARACTER = rf'(?:{PLAIN}|\\["\\/bfnrt])'


def literal(text: str) -> str:
    """The regex, in Rust's syntax, of this text alone."""
    return _SPECIAL.sub(r"\\\1", text)


def times(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"
