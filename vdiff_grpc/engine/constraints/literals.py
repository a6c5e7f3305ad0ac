"""Text as a regex of itself. Knows nothing else."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~])")


def literal(text: str) -> str:
    """The regex, in Rust's syntax, of this text alone."""
    return _SPECIAL.sub(r"\\\1", text)
