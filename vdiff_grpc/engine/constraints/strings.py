"""Regexes of JSON strings by a schema. Knows no references and no other types."""

from __future__ import annotations

from vdiff_grpc.engine.constraints.dialects import Schema, at
from vdiff_grpc.engine.constraints.formats import FORMATS, format_regex
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError
from vdiff_grpc.engine.constraints.literals import CHARACTER, PLAIN, literal, times
from vdiff_grpc.engine.constraints.patterns import pattern_regex


def string_regex(schema: Schema, excluded: list[str], path: str) -> str:
    """excluded: strings that it must not be. Raises NoValueError where there is none."""
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if high is not None and high < low:
        raise NoValueError(at(path, "maxLength"), f"maxLength ({high}) is below minLength ({low})")
    kind = schema.get("format")
    said = [k for k in ("pattern", "format") if k in schema and (k == "pattern" or kind in FORMATS)]
    if excluded:
        if said or low > 1 or high is not None:
            why = "strings cannot be excluded beside a pattern, a format or a length"
            raise ConstraintError(path, why)
        return f'"{_others(excluded + [""] * low)}"'
    if len(said) > 1:
        raise ConstraintError(at(path, "format"), "format cannot stand beside pattern")
    if said == ["pattern"]:
        return f'"{pattern_regex(schema["pattern"], at(path, "pattern"), low, high)}"'
    if said:
        if written := format_regex(schema["format"], low, high):
            return f'"{written}"'
        raise ConstraintError(at(path, "format"), f"format {kind} cannot stand beside this length")
    return f'"{CHARACTER}{times(low, high)}"'


def _others(words: list[str]) -> str:
    """Strings that are none of the words, of characters that need no escape."""
    firsts = sorted({word[0] for word in words if word})
    parts = [] if "" in words else [""]
    parts += [
        literal(first) + _others([word[1:] for word in words if word[:1] == first])
        for first in firsts
        if first >= " " and first not in '"\\\x7f'
    ]
    out = "".join(f"\\x{{{ord(first):x}}}" for first in firsts)
    parts.append((f"[{PLAIN}--[{out}]]" if out else PLAIN) + f"{PLAIN}*")
    return f"(?:{'|'.join(parts)})"
