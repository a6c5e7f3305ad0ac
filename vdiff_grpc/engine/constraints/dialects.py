"""A JSON schema in one spelling, whatever draft it was written for. Knows no regex.

The keywords of a value's own are left as they are; those that bring in other schemas are put aside in
ALSO, so that schemas can be merged. What JSON Schema says has no effect is dropped: annotations,
names of no draft, and keywords of a type that the value does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vdiff_grpc.engine.constraints.formats import FORMATS
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError

Schema = dict[str, Any]

ALSO = "_also"  # a tuple of Applied
EXCEPT = "_except"  # values that are not allowed

TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
KEYWORDS: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": (*_LIMITS, "multipleOf", "format"),
    "number": (*_LIMITS, "multipleOf", "format"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties", "propertyNames"),
    ),
}
_OWN = {"type", "enum", EXCEPT}.union(*KEYWORDS.values())
_APPLIED = ("$ref", "allOf", "not", "anyOf", "oneOf")
_REFUSED = frozenset(
    ("$dynamicRef", "$recursiveRef", "minContains", "maxContains", "disallow", "extends")
)
_ONCE_LIKE = {name.lower(): name for name in (*_OWN, *_APPLIED, *_REFUSED, "const", "if", "then")}
INT32 = "int32"  # of OpenAPI
MOST_DEPENDENT = 4  # properties that ask for others: each doubles what is written


@dataclass(frozen=True, slots=True)
class Applied:
    """A keyword that brings in other schemas. `dependent`: said is (property, what it asks for)."""

    keyword: str
    said: Any
    path: str


def at(path: str, keyword: str) -> str:
    return f"{path}.{keyword}" if path else keyword


def normal(schema: Any, path: str) -> Schema:
    """Raises ConstraintError for what cannot be held to, by its path; changes nothing twice."""
    if schema is True:
        return {ALSO: ()}
    if schema is False:
        raise NoValueError(path, "no value satisfies the schema false")
    if not isinstance(schema, dict):
        raise ConstraintError(path, "a schema is an object or a boolean")
    if isinstance(schema.get(ALSO), tuple):
        return schema
    for keyword in schema:
        _check_known(keyword, path)
    found = {k: v for k, v in schema.items() if k in _OWN - {EXCEPT}}
    if "const" in schema:
        values = [schema["const"]]
        if "enum" in found:
            raise ConstraintError(at(path, "const"), "const cannot stand beside enum")
        found["enum"] = values
    if "enum" in found and not isinstance(found["enum"], list):
        raise ConstraintError(at(path, "enum"), "enum must be a list of values")
    _spell_anew(schema, found, path)
    _check_shapes(found, path)
    also = [Applied(k, schema[k], at(path, k)) for k in _APPLIED if k in schema]
    if "if" in schema and ("then" in schema or "else" in schema):
        said = (schema["if"], schema.get("then", True), schema.get("else", True))
        also.append(Applied("if", said, at(path, "if")))
    also += _dependent(schema, path)
    for name in _inapplicable(found, path):
        del found[name]
    return {**found, ALSO: tuple(also)}


def types_of(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _check_known(keyword: str, path: str) -> None:
    if keyword in _REFUSED:
        raise ConstraintError(at(path, keyword), f"the keyword {keyword} is not supported")
    meant = _ONCE_LIKE.get(keyword.replace("_", "").replace("-", "").lower())
    if meant not in (None, keyword) and keyword[0] not in "_$-":
        raise ConstraintError(at(path, keyword), f"{keyword} is no keyword; {meant} is one")


def _spell_anew(schema: Schema, found: Schema, path: str) -> None:
    """Older drafts' ways, in place."""
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        is_old = isinstance(found.get(exclusive), bool)  # up to draft 4
        if is_old and found.pop(exclusive) and limit in found:
            found[exclusive] = found.pop(limit)
    if isinstance(found.get("items"), list):  # up to 2019-09
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in schema:
            found["items"] = schema["additionalItems"]
    for wide, name in (
        ("unevaluatedItems", "items"),
        ("unevaluatedProperties", "additionalProperties"),
    ):
        if wide in schema:  # at most what the narrower one allows
            found.setdefault(name, schema[wide])
    kind = found.get("format")
    if kind is None:
        return
    if not isinstance(kind, str):
        raise ConstraintError(at(path, "format"), "format must be a string")
    if kind not in FORMATS and kind != INT32:
        del found["format"]  # a format that is not JSON Schema's own says nothing


def _check_number(limit: Any, keyword: str, path: str) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise ConstraintError(at(path, keyword), f"{keyword} must be a number")


def _check_shapes(schema: Schema, path: str) -> None:
    """That each keyword has the kind of value that it must have."""
    for name in types_of(schema):
        if name not in TYPES:
            raise ConstraintError(at(path, "type"), f"type must be of {', '.join(TYPES)}")
    if "type" in schema and not types_of(schema):
        raise ConstraintError(at(path, "type"), f"type must be of {', '.join(TYPES)}")
    for keyword in (*_LIMITS, "multipleOf"):
        if keyword in schema:
            _check_number(schema[keyword], keyword, path)
    for keyword in schema:
        if keyword.startswith(("min", "max")) and keyword not in _LIMITS:
            count = schema[keyword]
            if isinstance(count, float) and count.is_integer():
                count = schema[keyword] = int(count)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ConstraintError(at(path, keyword), f"{keyword} must be a count")
    for keyword in ("properties", "patternProperties"):
        if not isinstance(schema.get(keyword, {}), dict):
            raise ConstraintError(at(path, keyword), f"{keyword} must be an object")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
        raise ConstraintError(at(path, "required"), "required must be a list of names")
    if not isinstance(schema.get("prefixItems", []), list):
        raise ConstraintError(at(path, "prefixItems"), "prefixItems must be a list")


def _dependent(schema: Schema, path: str) -> list[Applied]:
    found = []
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        here, asked = at(path, keyword), schema.get(keyword, {})
        if not isinstance(asked, dict):
            raise ConstraintError(here, f"{keyword} must be an object")
        for name, said in asked.items():
            more = {"required": said} if isinstance(said, list) else said
            found.append(Applied("dependent", (name, more), at(here, name)))
    if len(found) > MOST_DEPENDENT:
        raise ConstraintError(
            found[MOST_DEPENDENT].path, f"more than {MOST_DEPENDENT} of this kind"
        )
    return found


def _inapplicable(schema: Schema, path: str) -> list[str]:
    types = types_of(schema)
    if not types:
        return []
    telling = {"type", "enum", EXCEPT}.union(*(KEYWORDS.get(name, ()) for name in types))
    return [keyword for keyword in schema if keyword not in telling]
