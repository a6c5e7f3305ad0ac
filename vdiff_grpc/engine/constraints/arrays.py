"""Regexes of JSON arrays by a schema. Knows no references and no other types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdiff_grpc.engine.constraints.combining import merged
from vdiff_grpc.engine.constraints.dialects import ALSO, Schema, at, normal
from vdiff_grpc.engine.constraints.json_text import COMMA, dumped, sequence
from vdiff_grpc.engine.constraints.json_values import is_a, key
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError
from vdiff_grpc.engine.constraints.literals import literal, times

Inner = Callable[[Any, str], str]


def array_regex(schema: Schema, path: str, inner: Inner) -> str:
    """inner: the regex of a value by its schema and path; raises NoValueError where there is none."""
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is not None and high < low:
        raise NoValueError(path, f"maxItems ({high}) is below minItems ({low})")
    if schema.get("uniqueItems", False) is not False and (high is None or high > 1):
        return _unique(schema, path, low, high)
    if "contains" in schema:
        return _containing(schema, path, inner, low, high)
    first = schema.get("prefixItems", [])[:high]
    place = at(path, "prefixItems")
    items = [inner(item, f"{place}[{number}]") for number, item in enumerate(first)]
    left = max(low - len(items), 0)
    if items and not left:
        return r"\[" + COMMA.join(items) + r"\]"
    most = None if high is None else high - len(items)
    rest = _repeated(schema.get("items", True), at(path, "items"), inner, left, most)
    return r"\[" + COMMA.join([*items, rest]) + r"\]"


def _repeated(schema: Any, path: str, inner: Inner, low: int, high: int | None) -> str:
    """So many items, with commas between them."""
    if high == 0:
        return ""
    try:
        item = inner(schema, path)
    except NoValueError:
        if low:
            raise
        return ""
    more = times(max(low - 1, 0), None if high is None else high - 1)
    some = f"{item}(?:{COMMA}{item}){more}"
    return some if low else f"(?:{some})?"


def _containing(schema: Schema, path: str, inner: Inner, low: int, high: int | None) -> str:
    here = at(path, "contains")
    if low > 1 or high is not None or "prefixItems" in schema:
        raise ConstraintError(here, "contains is supported without counts and prefixItems alone")
    item = schema.get("items", True)
    found = inner(merged(item, schema["contains"], here), here)
    other = inner(item, at(path, "items"))
    return rf"\[(?:{other}{COMMA})*{found}(?:{COMMA}{other})*\]"


def _unique(schema: Schema, path: str, low: int, high: int | None) -> str:
    """Of named values: those that are there stand in the schema's order."""
    item = normal(schema.get("items", True), at(path, "items"))
    known = {"enum", "type", ALSO}.issuperset(item) and "enum" in item and not item[ALSO]
    if not known or {"prefixItems", "contains"} & set(schema):
        why = "uniqueItems is supported where items names its values (enum)"
        raise ConstraintError(at(path, "uniqueItems"), why)
    types = item.get("type", [])
    values: list[Any] = []
    seen = set()
    for value in item["enum"]:
        named = not types or any(
            is_a(value, n) for n in ([types] if isinstance(types, str) else types)
        )
        if named and key(value) not in seen:
            seen.add(key(value))
            values.append(value)
    if low > len(values):
        raise NoValueError(path, "there are not as many different items as there must be")
    if 1 < low < len(values) or (high is not None and high < len(values)):
        raise ConstraintError(at(path, "uniqueItems"), "uniqueItems is not supported beside counts")
    pairs = [(literal(dumped(value)), low == len(values)) for value in values]
    return r"\[" + sequence(pairs, some=low > 0) + r"\]"
