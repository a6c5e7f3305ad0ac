"""Regexes of JSON objects by a schema. Knows no references and no other types."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

from vdiff_grpc.engine.constraints.combining import merged, property_of
from vdiff_grpc.engine.constraints.dialects import ALSO, EXCEPT, Schema, at
from vdiff_grpc.engine.constraints.json_text import (
    COLON,
    STRING,
    dumped,
    free_object,
    one_of,
    sequence,
)
from vdiff_grpc.engine.constraints.json_values import equal, holds
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError, TooLargeError
from vdiff_grpc.engine.constraints.literals import MAX_CHARS, literal
from vdiff_grpc.engine.constraints.patterns import pattern_regex

Inner = Callable[[Any, str], str]


def object_regex(schema: Schema, path: str, inner: Inner) -> str:
    """inner: the regex of a value by its schema and path; raises NoValueError where there is none.

    Without declared properties those that the patterns, or additionalProperties, leave open.
    """
    required = schema.get("required", [])
    declared = [*schema.get("properties", {})]
    names = [*declared, *(name for name in required if name not in declared)]
    allowed = [name for name in names if property_of(schema, name, path) is not False]
    if not allowed and not required:
        return _open_object(schema, path, inner)
    pairs: list[tuple[str, bool]] = []
    num_chars = 0
    for name in names:
        is_declared = name in declared
        where = (
            at(at(path, "properties"), name) if is_declared else at(path, "additionalProperties")
        )
        try:
            if "propertyNames" in schema:
                _check_name(schema, name, path)
            value = inner(property_of(schema, name, where), where)
        except NoValueError:
            if name in required:
                raise
            continue
        pairs.append((literal(dumped(name)) + COLON + value, name in required))
        num_chars += len(value)
        if num_chars > MAX_CHARS:
            raise TooLargeError(path, "the schema is too large")
    return r"\{" + _counted(pairs, schema, path) + r"\}"


def _counted(pairs: list[tuple[str, bool]], schema: Schema, path: str) -> str:
    """Some of the pairs, as many as there may be."""
    low, high = schema.get("minProperties", 0), schema.get("maxProperties", len(pairs))
    musts = sum(must for _, must in pairs)
    if low > len(pairs) or high < musts or high < low:
        raise NoValueError(path, "no object has as many properties as it must have")
    if high < len(pairs) and high == musts:
        pairs = [(pair, must) for pair, must in pairs if must]
    elif high == 1 and len(pairs) > 1:
        written = one_of(pair for pair, _ in pairs)
        return written if low else f"{written}?"
    elif high < len(pairs):
        raise ConstraintError(at(path, "maxProperties"), "maxProperties is not supported here")
    if low == len(pairs):
        pairs = [(pair, True) for pair, _ in pairs]
    elif low > max(musts, 1):
        raise ConstraintError(at(path, "minProperties"), "minProperties is not supported here")
    return sequence(pairs, some=low > 0)


def _check_name(schema: Schema, name: str, path: str) -> None:
    """Raises NoValueError where propertyNames does not allow it."""
    names = schema["propertyNames"]
    known = isinstance(names, dict) and {"enum", "minLength", "maxLength", "type"}.issuperset(names)
    if names is True or (isinstance(names, dict) and not names):
        return
    if not known:
        why = "propertyNames cannot be held to beside declared properties"
        raise ConstraintError(at(path, "propertyNames"), why)
    if not all(holds(name, k, v) for k, v in names.items() if k != "type"):
        raise NoValueError(at(path, "propertyNames"), f"{name} is no name that is allowed")


def _open_object(schema: Schema, path: str, inner: Inner) -> str:
    """Nothing is declared, or only what must not be there: other names are free."""
    low, high = schema.get("minProperties", 0), schema.get("maxProperties")
    if low > 1:  # names are not counted: one could be written twice
        raise ConstraintError(at(path, "minProperties"), "minProperties is not supported here")
    pairs = []
    for name, value, where in _free_names(schema, path, inner) if high != 0 else ():
        try:
            pairs.append(name + COLON + inner(value, where))
        except NoValueError:
            continue
    if not pairs:
        if low:
            raise NoValueError(path, "no object has as many properties as it must have")
        return r"\{\}"
    return free_object(one_of(pairs), low, high)


def _free_names(schema: Schema, path: str, inner: Inner) -> list[tuple[str, Any, str]]:
    """Regexes of names, what their values must be, and where that is said."""
    barred, names = [*schema.get("properties", {})], schema.get("propertyNames", True)
    if not schema.get("patternProperties"):
        here = at(path, "additionalProperties")
        name = STRING
        if barred or names is not True:
            free = {"type": "string", EXCEPT: barred, ALSO: ()}
            name = inner(merged(free, names, path), at(path, "propertyNames"))
        return [(name, schema.get("additionalProperties", True), here)]
    here = at(path, "patternProperties")
    patterns = schema["patternProperties"]
    for (one, first), (other, second) in combinations(patterns.items(), 2):
        if not equal(first, second) and not _differ(one, other):
            raise ConstraintError(here, "a name could match two of its patterns")
    if barred or names is not True:
        raise ConstraintError(here, "patternProperties cannot be held to beside other names")
    return [
        (f'"{pattern_regex(pattern, at(here, pattern))}"', sub, at(here, pattern))
        for pattern, sub in patterns.items()
        if sub is not False
    ]


def _differ(one: str, other: str) -> bool:
    """Whether no name matches both patterns, as far as their beginnings tell."""
    first, second = _beginning(one), _beginning(other)
    length = min(len(first), len(second))
    return first[:length] != second[:length]


def _beginning(pattern: str) -> str:
    """What every match begins with, or less."""
    found = re.match(r"\^([A-Za-z0-9_/ -]*)", pattern)
    if found is None or "|" in pattern:
        return ""
    rest = pattern[found.end() :]
    return found[1][:-1] if rest[:1] in ("*", "?", "{") else found[1]
