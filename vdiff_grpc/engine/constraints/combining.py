"""Two JSON schemas at once, apart, or without one another. Knows no regex.

All schemas here are in the spelling of dialects.normal; `follow` leads from a $ref to what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdiff_grpc.engine.constraints.dialects import (
    ALSO,
    EXCEPT,
    TYPES,
    Applied,
    Schema,
    normal,
    types_of,
)
from vdiff_grpc.engine.constraints.json_values import equal, is_a, key, overlap
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError
from vdiff_grpc.engine.constraints.matching import is_found

_UNEVALUATED = frozenset(("unevaluatedItems", "unevaluatedProperties"))
# Beside these they allow more than what is written of them.
_APPLYING = frozenset(
    ("$ref", "allOf", "anyOf", "oneOf", "if", "contains", "dependencies", "dependentSchemas")
)
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")

# What a value must be instead, where one of these limits is not kept; and by how much it differs.
_OPPOSITE = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


def merged(one: Any, other: Any, path: str) -> Any:
    """A schema that asks for both. Raises ConstraintError where that is not one."""
    if one is True or other is True:
        return other if one is True else one
    if one is False or other is False:
        return False
    one, other = normal(one, path), normal(other, path)
    both = {**other, **one}
    for keyword in one.keys() & other.keys():
        both[keyword] = _both_say(keyword, one[keyword], other[keyword], path)
    if "properties" in both or "patternProperties" in both:
        _merge_properties_(both, one, other, path)
    if ("prefixItems" in one or "prefixItems" in other) and one.get("items") != other.get("items"):
        raise ConstraintError(
            path, "items beside prefixItems cannot be combined with another schema"
        )
    if both.get("type") == [] or both.get("enum") == []:
        return False
    return both


def _both_say(keyword: str, one: Any, other: Any, path: str) -> Any:
    if keyword in (ALSO, EXCEPT):
        return one + other
    if equal(one, other):
        return one
    if keyword == "required":
        return list(dict.fromkeys(one + other))
    if keyword == "enum":
        named = set(map(key, other))
        return [value for value in one if key(value) in named]
    if keyword == "type":
        return _common_types(types_of({"type": one}), types_of({"type": other}))
    if keyword in _LEAST:
        return max(one, other)
    if keyword in _MOST:
        return min(one, other)
    if keyword == "uniqueItems":
        return one is True or other is True
    if keyword in ("properties", "patternProperties"):
        return one  # see _merge_properties_
    if keyword in ("items", "additionalProperties", "propertyNames"):
        return merged(one, other, f"{path}.{keyword}")
    why = f"{keyword} is said twice for the same value, which cannot be combined"
    raise ConstraintError(path, why)


def _common_types(one: list[str], other: list[str]) -> list[str]:
    found = [name for name in one if name in other]
    if "number" not in found and "integer" not in found:
        found += ["integer"] * any(a != b and overlap(a, b) for a in one for b in other)
    return found


def _merge_properties_(both: Schema, one: Schema, other: Schema, path: str) -> None:
    names = dict.fromkeys((*one.get("properties", {}), *other.get("properties", {})))
    both["properties"] = {
        name: merged(property_of(one, name, path), property_of(other, name, path), f"{path}.{name}")
        for name in names
    }
    patterns, others = one.get("patternProperties"), other.get("patternProperties")
    if patterns and others and not equal(patterns, others):
        why = "patternProperties cannot be combined with those of another schema"
        raise ConstraintError(path, why)
    rest = (other if patterns else one).get("additionalProperties", True)
    if bool(patterns) != bool(others):
        mixed = {p: merged(sub, rest, path) for p, sub in (patterns or others or {}).items()}
        both["patternProperties"] = mixed


def property_of(schema: Schema, name: str, path: str) -> Any:
    """What an object's schema asks of a property, whether it names it or not."""
    asked = [schema["properties"][name]] if name in schema.get("properties", {}) else []
    for pattern, sub in schema.get("patternProperties", {}).items():
        if is_found(pattern, name, path):
            asked.append(sub)
    if not asked:
        return schema.get("additionalProperties", True)
    whole = asked[0]
    for sub in asked[1:]:
        whole = merged(whole, sub, path)
    return whole


# --- apart, and not ---------------------------------------------------------------


class Logic:
    """What can be told of two schemas without a value.

    resolved: what a $ref of a path means. spend: called for each schema that is looked at; raises
    ConstraintError when that were too many.
    """

    def __init__(self, resolved: Callable[[Any, str], Any], spend: Callable[[str], None]) -> None:
        self._resolved = resolved
        self._spend = spend

    def without(self, one: Any, other: Any, path: str) -> list[Any] | None:
        """Schemas that satisfy one and not the other; None: none were found, though there may be."""
        if self.are_apart(one, other):
            return [one]
        first, second = self._followed(one), self._followed(other)
        if first is None or second is None:
            return [] if second is not None else [one]
        items = [schema.get("items", True) for schema in (first, second)]
        if types_of(first) == types_of(second) == ["array"] and self.are_apart(*items):
            return [merged(one, {"minItems": 1}, path)]  # an empty one is both
        found = [merged(one, opposite, path) for opposite in self.opposites(other, path)]
        found = [schema for schema in found if schema is not False]
        return found or None

    def are_apart(self, one: Any, other: Any) -> bool:
        """Whether no value satisfies both, as far as can be seen."""
        first, second = self._followed(one), self._followed(other)
        if first is None or second is None:
            return True
        values, others = first.get("enum"), second.get("enum")
        if values is not None and others is not None:
            return set(map(key, values)).isdisjoint(map(key, others))
        types, more = _types_told(first), _types_told(second)
        if types and more and not any(overlap(a, b) for a in types for b in more):
            return True
        if types != ["object"] or more != ["object"]:
            return False
        asked, too = set(first.get("required", ())), set(second.get("required", ()))
        return any(
            self.are_apart(property_of(first, name, ""), property_of(second, name, ""))
            for name in sorted(asked | too)
            if (name in asked and name in too)
            or (name in asked and property_of(second, name, "") is False)
            or (name in too and property_of(first, name, "") is False)
        )

    def opposites(self, schema: Any, path: str) -> list[Any]:
        """Schemas none of whose values satisfy this one; perhaps not all such values do one."""
        known = self._followed(schema)
        if known is None:
            return [True]
        self._spend(path)
        types = types_of(known)
        found: list[Any] = []
        if types:
            left = [n for n in TYPES if not any(overlap(n, t) for t in types)]
            found += [{"type": left}] if left else []
        if "enum" in known:
            found.append({EXCEPT: known["enum"], ALSO: ()})
        for keyword, (kind, instead, more) in _OPPOSITE.items():
            if keyword in known and (kind == "number" or known[keyword] + more >= 0):
                found.append({"type": kind, instead: known[keyword] + more})
        for name in known.get("required", ()):
            found.append({"type": "object", "properties": {name: False}})
        for name, sub in known.get("properties", {}).items():
            for opposite in self.opposites(sub, path):
                properties = {name: opposite}
                found.append({"type": "object", "properties": properties, "required": [name]})
        for applied in known[ALSO]:
            found += self._opposites_of(applied, path)
        return found

    def _opposites_of(self, applied: Applied, path: str) -> list[Any]:
        said = applied.said
        if applied.keyword == "not":
            return [said]
        if applied.keyword == "$ref":
            return self.opposites(self._resolved(said, path), path)
        if applied.keyword == "allOf" and isinstance(said, list):
            return [opposite for branch in said for opposite in self.opposites(branch, path)]
        if applied.keyword == "anyOf" and isinstance(said, list):
            found: list[Any] = [True]
            for branch in said:
                mixed = []
                for schema in found:
                    for opposite in self.opposites(branch, path):
                        self._spend(path)
                        mixed.append(merged(schema, opposite, path))
                found = [schema for schema in mixed if schema is not False]
            return found
        return []

    def _followed(self, schema: Any) -> Schema | None:
        """In one spelling, and what it refers to if that is all it says; None: no value satisfies it."""
        for _ in range(16):
            self._spend("")
            if schema is False:
                return None
            try:
                schema = normal(_wide(schema), "")
            except NoValueError:
                return None
            also = schema[ALSO]
            if len(schema) > 1 or len(also) != 1 or also[0].keyword != "$ref":
                break
            schema = self._resolved(also[0].said, also[0].path)
        return normal(_wide(schema), "")


def widened(schema: Any) -> Any:
    """Without what is written more narrowly than it is meant: all that it allows is in this one."""
    if isinstance(schema, list):
        return [widened(part) for part in schema]
    if not isinstance(schema, dict) or ALSO in schema:
        return schema
    return {
        name: said if name in ("enum", "const") else widened(said)
        for name, said in _wide(schema).items()
    }


def _wide(schema: Any) -> Any:
    """The same of this level alone."""
    if isinstance(schema, dict) and schema.keys() & _UNEVALUATED and schema.keys() & _APPLYING:
        return {name: said for name, said in schema.items() if name not in _UNEVALUATED}
    return schema


def _types_told(schema: Schema) -> list[str]:
    """Its types, also by the values that it names; none: any."""
    if "enum" in schema and "type" not in schema:
        return [n for n in TYPES if any(is_a(value, n) for value in schema["enum"])]
    return types_of(schema)
