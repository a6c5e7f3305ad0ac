"""What JSON schemas become: everything written is valid, as a validator of its own says."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

import jsonschema
import pytest

from tests.engine.test_constraint_refusals import matches
from vdiff_grpc.engine.constraints.compiler import byte_automaton, regex_of
from vdiff_grpc.engine.constraints.kinds import ConstraintError, JsonSchemaConstraint, TooLargeError
from vdiff_grpc.engine.constraints.matching import is_found
from vdiff_grpc.engine.constraints.schema import schema_regex

_NULL = {"type": "null"}
_AB = {"type": "object", "properties": {"a": _NULL, "b": _NULL}}
_VALUES = [
    "a",
    "b",
    "ab",
    "x-a",
    "",
    0,
    2,
    4,
    5,
    10,
    0.5,
    True,
    None,
    [],
    ["a"],
    ["b", "a"],
    ["a", 1],
]
_OBJECTS = [
    {},
    *({"a": v} for v in (None, "a", 0)),
    *({"b": v} for v in (None, "b", 0)),
    *({"a": None, "b": v} for v in (None, "b")),
    {"x-a": None},
    {"x-a": "a"},
    {"a": {"a": {}}},
]

# Each with how many of the values above are written.
SCHEMAS: list[tuple[dict[str, Any], int]] = [
    ({"type": "string", "x-note": 1, "format": "of ours", "minimum": 3}, 5),
    ({"type": "string", "pattern": "^[a-z-]+$", "minLength": 2}, 2),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, 2),
    ({"not": {"enum": ["a", "", True]}}, 4),
    ({"type": "string", "not": {"enum": ["a", ""]}}, 3),
    ({"enum": [0, 2, 4, "a"], "minimum": 1, "not": {"const": 4}}, 2),
    ({"type": "integer", "multipleOf": 2, "minimum": 1, "maximum": 9}, 2),
    ({"type": "integer", "multipleOf": 5}, 3),
    ({"type": "number", "multipleOf": 0.1, "maximum": 4}, 4),
    ({"type": "integer", "format": "int32", "not": {"minimum": 3}}, 2),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, 2),
    ({"type": "array", "items": {"type": "string"}, "contains": {"const": "a"}}, 2),
    ({"oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "array", "items": _NULL}]}, 2),
    ({**_AB, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, 2),
    ({**_AB, "minProperties": 1}, 3),
    ({**_AB, "maxProperties": 1}, 3),
    ({**_AB, "dependentRequired": {"a": ["b"]}}, 3),
    ({**_AB, "dependencies": {"a": {"properties": {"b": {"const": "b"}}}}}, 3),
    ({**_AB, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, 3),
    ({**_AB, "not": {"required": ["a", "b"]}}, 3),
    ({**_AB, "allOf": [{"properties": {"a": True}, "additionalProperties": False}]}, 2),
    ({"type": "object", "patternProperties": {"^x-": _NULL}, "additionalProperties": False}, 2),
    ({"type": "object", "propertyNames": {"enum": ["b"]}, "additionalProperties": {"type": "string"}}, 2),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, 2),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_what_is_written_is_valid(number: int) -> None:
    schema, count = SCHEMAS[number]
    pattern = schema_regex(json.dumps(schema))
    written = 0
    for value in (*_VALUES, *_OBJECTS):
        if matches(pattern, json.dumps(value)):
            jsonschema.validate(value, schema)
            written += 1
    assert written == count


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"minlength": 3}, "minlength"),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
        ({"not": {"pattern": "a"}}, "not"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 9}, {"multipleOf": 2}]}, "oneOf"),
        ({"properties": {"a": {"uniqueItems": True}}}, "properties.a.uniqueItems"),
        ({"pattern": "a(?=b)"}, "pattern"),
        ({"patternProperties": {"a": {"const": 1}, "b": {"const": 2}}}, "patternProperties"),
        ({"items": {"$id": "x", "$ref": "#/a"}}, "items.$ref"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_its_path(schema: Any, path: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        schema_regex(json.dumps(schema))
    assert caught.value.path == path


def test_a_schema_within_itself_is_nested_twice_more() -> None:
    pattern = schema_regex('{"type":"object","properties":{"a":{"$ref":"#"}}}')
    for depth, is_written in ((1, True), (3, True), (4, False)):
        assert matches(pattern, '{"a": ' * depth + "{}" + "}" * depth) is is_written


_FAN = {
    f"d{i}": {"properties": {x: {"$ref": f"#/$defs/d{i + 1}"} for x in "abcdefgh"}}
    for i in range(12)
}
_MUTUAL = {
    f"d{i}": {"properties": {f"p{j}": {"$ref": f"#/$defs/d{j}"} for j in range(10)}}
    for i in range(10)
}
HOSTILE: dict[str, Any] = {
    "fan": {"$defs": _FAN | {"d12": _NULL}, "$ref": "#/$defs/d0"},
    "mutual": {"$defs": _MUTUAL, "$ref": "#/$defs/d0"},
    "properties": {"properties": {f"p{i}": {} for i in range(9000)}},
    "alternatives": {"oneOf": [{"required": [f"q{i}", f"r{i}"]} for i in range(200)]},
    "opposites": {"not": {"anyOf": [{"required": [f"a{i}", f"b{i}"]} for i in range(40)]}},
    "search": {"properties": {"a" * 3000 + "b": {}}, "patternProperties": {"^((a+)+)+$": {}}},
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_schema_is_too_large_before_anything_is_built(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(TooLargeError):
        regex_of(JsonSchemaConstraint(json.dumps(HOSTILE[name])))
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    "schema",
    [
        '{"not":{"const":"\\ud800"}}',
        '{"type":"integer","maximum":1e999}',
        '{"items":' * 5000 + "1" + "}" * 5000,
    ],
)
def test_what_no_text_can_be_is_refused(schema: str) -> None:
    with pytest.raises(ConstraintError):
        byte_automaton(regex_of(JsonSchemaConstraint(schema)))


def test_a_pattern_is_found_where_a_search_finds_it() -> None:
    patterns = ["^a+$", "b", "^(a|b)+c?$", "(ab|c)$", "[^ab]", "", "^a?b{2}$", "a.c", r"\w-\d?"]
    for pattern, letters in itertools.product(patterns, itertools.product("abc-", repeat=3)):
        text = "".join(letters)
        assert is_found(pattern, text, "") == bool(re.search(pattern, text)), (pattern, text)
    begin = time.process_time()
    assert not is_found("^(((a*)*)*)*$", "a" * 60 + "b", "")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("schema", ["true", '{"minimum":1}'])
def test_what_begins_with_a_number_is_built_in_time(schema: str) -> None:
    table, _ = byte_automaton(regex_of(JsonSchemaConstraint(schema)))
    assert len(table) < 1000


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "integer", "not": {"const": 1.0}}, "1"),
        ({"type": ["integer", "string"], "not": {"enum": [1.0, 2.0]}}, "2"),
        ({"if": {"const": 1.0}, "then": {"type": "string"}, "else": {"type": "integer"}}, "1"),
        ({"oneOf": [{"type": "integer"}, {"const": 1.0}]}, "1"),
        ({"type": "number", "exclusiveMinimum": 16}, "16.000000000000001"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 100}, "99.999999999999999"),
        ({"type": "number", "not": {"minimum": 100}}, "99.999999999999999"),
        (
            {
                "oneOf": [
                    {"type": "array", "items": {"type": "string"}},
                    {
                        "type": "array",
                        "unevaluatedItems": False,
                        "allOf": [{"items": {"type": "string"}}],
                    },
                ]
            },
            '["a"]',
        ),
        (
            {
                "oneOf": [
                    {"type": "object", "required": ["b"], "properties": {"b": {"type": "integer"}}},
                    {
                        "type": "object",
                        "unevaluatedProperties": False,
                        "anyOf": [{"properties": {"b": {"type": "integer"}}}],
                    },
                ]
            },
            '{"b": 1}',
        ),
    ],
)
def test_what_a_reader_takes_for_a_forbidden_value_is_not_written(schema: Any, wrong: str) -> None:
    try:
        pattern = schema_regex(json.dumps(schema))
    except ConstraintError:
        return
    assert not matches(pattern, wrong)


def test_decimals_stay_on_their_side_of_an_exclusive_limit() -> None:
    pattern = schema_regex('{"type": "number", "exclusiveMinimum": 16, "maximum": 20}')
    assert matches(pattern, "16.5")
    assert matches(pattern, "16.0000000000001")
    assert not matches(pattern, "16")


def test_long_enums_are_told_apart_in_no_time_to_speak_of() -> None:
    even, odd = list(range(0, 20000, 2)), list(range(1, 20000, 2))
    written = schema_regex(json.dumps({"oneOf": [{"enum": even}, {"enum": odd}]}))
    assert len(written) > 20000
