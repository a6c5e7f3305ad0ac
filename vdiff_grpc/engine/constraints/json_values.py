"""JSON schema's types and equality of values. Knows no schema."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


def is_a(value: Any, name: str) -> bool:
    kinds: dict[str, Any] = {"string": str, "boolean": bool, "null": type(None)}
    kinds |= {"array": list, "object": dict, "integer": int, "number": (int, float)}
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    return name in kinds and isinstance(value, kinds[name])


def overlap(one: str, other: str) -> bool:
    return one == other or {one, other} == {"integer", "number"}


def equal(one: Any, other: Any) -> bool:
    """As JSON: 1 is 1.0, and neither is true."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def key(value: Any) -> Hashable:
    """Equal values have equal ones."""
    if isinstance(value, list):
        return ("list", *map(key, value))
    if isinstance(value, dict):
        return frozenset((name, key(item)) for name, item in value.items())
    return isinstance(value, bool), value


def holds(value: Any, keyword: str, said: Any) -> bool | None:
    """Whether a value is as a keyword of its type says; None: this is not known here."""
    match keyword:
        case "enum":
            return any(equal(value, other) for other in said)
        case "minimum":
            return bool(value >= said)
        case "maximum":
            return bool(value <= said)
        case "exclusiveMinimum":
            return bool(value > said)
        case "exclusiveMaximum":
            return bool(value < said)
        case "minLength" | "minItems" | "minProperties":
            return bool(len(value) >= said)
        case "maxLength" | "maxItems" | "maxProperties":
            return bool(len(value) <= said)
        case "required":
            return all(name in value for name in said)
    return None
