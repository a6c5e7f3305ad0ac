"""A JSON schema as a regex of JSON that it allows. Knows no automaton.

Whatever matches is valid; not all that is valid matches: properties stand in the schema's order, none
but the declared ones, and where any value is allowed it is nested only so deep. A keyword that this
cannot hold an answer to is refused by its path, never passed over.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

from vdiff_grpc.engine.constraints.json_text import (
    COLON,
    COMMA,
    anything,
    free_object,
    one_of,
    sequence,
    times,
)
from vdiff_grpc.engine.constraints.json_values import equal, is_a, overlap
from vdiff_grpc.engine.constraints.kinds import ConstraintError
from vdiff_grpc.engine.constraints.numbers import integers, numbers
from vdiff_grpc.engine.constraints.strings import CHARACTER, FORMATS, literal, pattern_regex

Schema = dict[str, Any]

ANY_DEPTH = 1  # arrays and objects inside a value of which nothing is said
MAX_DEPTH = 64
MAX_BRANCHES = 64
MAX_CHARS = 1 << 20

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "$anchor",
    ]
)
# What each type's keywords are; without `type`, those that are there tell it.
_KEYWORDS: dict[str, frozenset[str]] = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "object": frozenset(("properties", "required", "additionalProperties")),
}  # fmt: skip
_KEYWORDS["number"] = _KEYWORDS["integer"]
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf")
_KNOWN = _ANNOTATIONS.union({"type", "enum", "const"}, _COMBINED, *_KEYWORDS.values())


def schema_regex(text: str) -> str:
    """The regex for a schema given as JSON. Raises ConstraintError with the keyword's path."""
    try:
        root = json.loads(text, parse_constant=_refuse_constant)
        return _Writer(root).value(root, "", 0)
    except RecursionError as error:
        raise ConstraintError("", "the schema is nested too deeply") from error
    except ValueError as error:
        raise ConstraintError("", f"the schema is no JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class _Writer:
    """Writes the regexes of one document's schemas."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._open: list[str] = []  # references that are being written
        self._written: dict[str, str] = {}

    def value(self, schema: Any, path: str, depth: int) -> str:
        """One value; a group of its own."""
        if depth > MAX_DEPTH:
            raise ConstraintError(path, f"the schema is nested deeper than {MAX_DEPTH}")
        if schema is True:
            return anything(ANY_DEPTH)
        if schema is False:
            raise ConstraintError(path, "no value satisfies the schema false")
        if not isinstance(schema, dict):
            raise ConstraintError(path, "a schema is an object or a boolean")
        for keyword in schema:
            if keyword not in _KNOWN:
                raise ConstraintError(_at(path, keyword), f"the keyword {keyword} is not supported")
        written = self._combined(schema, path, depth)
        if written is None:
            written = self._alone(schema, path, depth)
        if len(written) > MAX_CHARS:
            raise ConstraintError(path, "the schema is too large")
        return written

    # --- $ref, allOf, anyOf, oneOf --------------------------------------------

    def _combined(self, schema: Schema, path: str, depth: int) -> str | None:
        keyword = next((name for name in _COMBINED if name in schema), None)
        if keyword is None:
            return None
        here = _at(path, keyword)
        rest = {k: v for k, v in schema.items() if k != keyword and k not in _ANNOTATIONS}
        if keyword == "$ref":
            return self._reference(schema["$ref"], rest, here, depth)
        branches = schema[keyword]
        if not isinstance(branches, list) or not 1 <= len(branches) <= MAX_BRANCHES:
            raise ConstraintError(here, f"{keyword} must be a list of 1 to {MAX_BRANCHES} schemas")
        if keyword == "allOf":
            whole: Any = rest
            for number, branch in enumerate(branches):
                whole = self._merged(whole, branch, f"{here}[{number}]")
            return self.value(whole, here, depth + 1)
        if keyword == "oneOf":
            for one, other in combinations(range(len(branches)), 2):
                if not self._are_apart(branches[one], branches[other]):
                    why = f"oneOf: an answer could satisfy both of its schemas {one} and {other}"
                    raise ConstraintError(here, why)
        parts = []
        for number, branch in enumerate(branches):
            if branch is False:
                continue
            at = f"{here}[{number}]"
            parts.append(self.value(self._merged(rest, branch, at), at, depth + 1))
        if not parts:
            raise ConstraintError(here, "no value satisfies it")
        return one_of(parts)

    def _reference(self, target: Any, rest: Schema, path: str, depth: int) -> str:
        found = self._resolved(target, path)
        if target in self._open:
            raise ConstraintError(path, f"the schema refers to itself ({target})")
        if not rest and target in self._written:
            return self._written[target]
        self._open.append(target)
        written = self.value(self._merged(rest, found, path), path, depth + 1)
        self._open.pop()
        if not rest:
            self._written[target] = written
        return written

    def _resolved(self, target: Any, path: str) -> Any:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise ConstraintError(path, "$ref must be a reference inside the schema (#/...)")
        found = self._root
        for part in target.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise ConstraintError(path, f"$ref ({target}) leads nowhere")
        return found

    def _merged(self, rest: Schema, branch: Any, path: str) -> Any:
        """A schema that asks for both. Raises ConstraintError where that is not one."""
        if not rest or branch is False:
            return branch
        if branch is True:
            return rest
        if not isinstance(branch, dict):
            raise ConstraintError(path, "a schema is an object or a boolean")
        both = dict(rest)
        for keyword, said in branch.items():
            if keyword in _ANNOTATIONS:
                continue
            if keyword not in both or both[keyword] == said:
                both[keyword] = said
            elif keyword == "required":
                both[keyword] = [
                    *both[keyword],
                    *(name for name in said if name not in both[keyword]),
                ]
            elif keyword == "properties" and not set(said) & set(both[keyword]):
                both[keyword] = both[keyword] | said
            else:
                why = f"{keyword} is said twice for the same value, which cannot be combined"
                raise ConstraintError(_at(path, keyword), why)
        closed = [s for s in (rest, branch) if s.get("additionalProperties", True) is not True]
        listed = [s for s in (rest, branch) if "items" in s]
        others = [s for s in (rest, branch) if "prefixItems" in s]
        apart = len(closed) == 1 and both.get("properties") != closed[0].get("properties")
        if apart or (listed and others and listed != others):
            why = "additionalProperties or items cannot be combined with the schema beside it"
            raise ConstraintError(path, why)
        return both

    def _are_apart(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether no value satisfies both, as far as can be seen."""
        one, other = self._followed(one), self._followed(other)
        if not isinstance(one, dict) or not isinstance(other, dict) or depth > MAX_DEPTH:
            return False
        values, others = _listed(one), _listed(other)
        if values is not None and others is not None:
            return not any(equal(a, b) for a in values for b in others)
        types, more = _types_of(one), _types_of(other)
        if types and more and not any(overlap(a, b) for a in types for b in more):
            return True
        if types != ["object"] or more != ["object"]:
            return False
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        ours, theirs = one.get("properties", {}), other.get("properties", {})
        return any(
            name in ours and name in theirs and self._are_apart(ours[name], theirs[name], depth + 1)
            for name in shared
        )

    def _followed(self, schema: Any) -> Any:
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = self._resolved(schema["$ref"], "$ref")
        return schema

    # --- one schema, without others beside it ----------------------------------

    def _alone(self, schema: Schema, path: str, depth: int) -> str:
        said = set(schema) - _ANNOTATIONS
        if (listed := _listed(schema)) is not None:
            for keyword in ("enum", "const"):
                if extra := said - {"type", keyword} if keyword in said else None:
                    first = sorted(extra)[0]
                    raise ConstraintError(
                        _at(path, first), f"{first} cannot stand beside {keyword}"
                    )
            named = _types_of(schema)
            allowed = [v for v in listed if not named or any(is_a(v, name) for name in named)]
            if not allowed:
                raise ConstraintError(path, "no value is allowed")
            return one_of(literal(_dumped(value)) for value in allowed)
        types = self._asked_types(schema, path)
        if types is None:
            return anything(ANY_DEPTH)
        for keyword in sorted(said - {"type"}):
            if not any(keyword in _KEYWORDS.get(name, ()) for name in types):
                why = f"{keyword} says nothing of the type {', '.join(types)}"
                raise ConstraintError(_at(path, keyword), why)
        return one_of(self._of_type(name, schema, path, depth) for name in types)

    def _asked_types(self, schema: Schema, path: str) -> list[str] | None:
        """In the schema's order; None: any."""
        if "type" not in schema:
            inferred = [name for name in _TYPES if _KEYWORDS.get(name, frozenset()) & set(schema)]
            if "number" in inferred:
                inferred.remove("integer")
            return inferred or None
        types = _types_of(schema)
        if not types or any(name not in _TYPES for name in types):
            raise ConstraintError(_at(path, "type"), f"type must be of {', '.join(_TYPES)}")
        return types

    def _of_type(self, name: str, schema: Schema, path: str, depth: int) -> str:
        match name:
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                said = {k: v for k, v in schema.items() if k in _KEYWORDS["number"]}
                for keyword, limit in said.items():
                    if isinstance(limit, bool) or not isinstance(limit, int | float):
                        raise ConstraintError(_at(path, keyword), f"{keyword} must be a number")
                if "multipleOf" in said and (name, said["multipleOf"]) != ("integer", 1):
                    raise ConstraintError(
                        _at(path, "multipleOf"), "the keyword multipleOf is not supported"
                    )
                written = integers(said) if name == "integer" else numbers(said)
                if not written:
                    raise ConstraintError(path, f"its limits leave no {name} that can be written")
                return written
            case "boolean":
                return "(?:true|false)"
            case "null":
                return "null"
            case "array":
                return self._array(schema, path, depth)
        return self._object(schema, path, depth)

    def _string(self, schema: Schema, path: str) -> str:
        said = [k for k in ("pattern", "format") if k in schema]
        sized = "minLength" in schema or "maxLength" in schema
        if len(said) + sized > 1:
            keyword = said[-1]
            what = "pattern" if len(said) > 1 else "a length"
            raise ConstraintError(_at(path, keyword), f"{keyword} cannot stand beside {what}")
        if "pattern" in schema:
            return f'"{pattern_regex(schema["pattern"], _at(path, "pattern"))}"'
        if "format" in schema:
            name = schema["format"]
            if not isinstance(name, str) or name not in FORMATS:
                why = f"format is none of {', '.join(sorted(FORMATS))}"
                raise ConstraintError(_at(path, "format"), why)
            return f'"{FORMATS[name]}"'
        low, high = _counts(schema, "minLength", "maxLength", path)
        return f'"{CHARACTER}{times(low, high)}"'

    def _array(self, schema: Schema, path: str, depth: int) -> str:
        if schema.get("uniqueItems", False) is not False:
            raise ConstraintError(
                _at(path, "uniqueItems"), "the keyword uniqueItems is not supported"
            )
        low, high = _counts(schema, "minItems", "maxItems", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise ConstraintError(_at(path, "prefixItems"), "prefixItems must be a list")
        rest = schema.get("items", True)
        if isinstance(rest, list):
            raise ConstraintError(_at(path, "items"), "items must be one schema, see prefixItems")
        if first:
            items = [
                self.value(item, f"{_at(path, 'prefixItems')}[{i}]", depth + 1)
                for i, item in enumerate(first)
            ]
            if low > len(items) or (high is not None and high < len(items)):
                why = "minItems and maxItems must leave the items of prefixItems as they are"
                raise ConstraintError(_at(path, "prefixItems"), why)
            if low < len(items) or rest is not False:  # a shorter or longer one is not written
                rest = False
            return r"\[" + COMMA.join(items) + r"\]"
        if rest is False or high == 0:
            if low:
                raise ConstraintError(path, "no array satisfies it")
            return r"\[\]"
        item = self.value(rest, _at(path, "items"), depth + 1)
        more = times(max(low - 1, 0), None if high is None else high - 1)
        some = rf"{item}(?:{COMMA}{item}){more}"
        return rf"\[{some}\]" if low else rf"\[(?:{some})?\]"

    def _object(self, schema: Schema, path: str, depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            raise ConstraintError(_at(path, "properties"), "properties must be an object")
        if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
            raise ConstraintError(_at(path, "required"), "required must be a list of names")
        at = _at(path, "properties")
        declared = {name: (sub, _at(at, name)) for name, sub in properties.items()}
        for name in required:
            declared.setdefault(name, (others, _at(path, "additionalProperties")))
        if not declared:
            if others is False:
                return r"\{\}"
            value = self.value(others, _at(path, "additionalProperties"), depth + 1)
            return free_object(value)
        pairs: list[tuple[str, bool]] = []
        for name, (sub, where) in declared.items():
            if sub is False and name not in required:
                continue
            value = self.value(sub, where, depth + 1)
            pairs.append((literal(_dumped(name)) + COLON + value, name in required))
        return r"\{" + sequence(pairs) + r"\}"


def _counts(schema: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
    for keyword in (least, most):
        count = schema.get(keyword, 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConstraintError(_at(path, keyword), f"{keyword} must be a count")
    low, high = schema.get(least, 0), schema.get(most)
    if high is not None and high < low:
        raise ConstraintError(_at(path, most), f"{most} ({high}) is below {least} ({low})")
    return low, high


def _listed(schema: Schema) -> list[Any] | None:
    """The values that enum or const names."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _types_of(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _at(path: str, keyword: str) -> str:
    return f"{path}.{keyword}" if path else keyword
