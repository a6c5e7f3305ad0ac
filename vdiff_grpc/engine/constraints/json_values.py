"""JSON schema's types and equality of values. Knows no schema."""

from __future__ import annotations

from typing import Any


def is_a(value: Any, name: str) -> bool:
    kinds: dict[str, Any] = {"string": str, "boolean": bool, "null": type(None)}
    kinds |= {"array": list, "object": dict, "integer": int, "number": (int, float)}
    if isinstance(value, bool):
        return name == "boolean"
    return name in kinds and isinstance(value, kinds[name])


def overlap(one: str, other: str) -> bool:
    return one == other or {one, other} == {"integer", "number"}


def equal(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
