"""Calls of functions as a regex: their form, and what stands around them. Knows no schema.

The form between tags is that of Hermes and Qwen, whose chat templates Dream, SDAR and LLaDA2 have
taken over; without tags a call is the same JSON on a line of its own.
"""

from __future__ import annotations

import json
from typing import Any

from vdiff_grpc.engine.constraints.json_text import one_of
from vdiff_grpc.engine.constraints.kinds import CallsConstraint, ConstraintError, TooLargeError
from vdiff_grpc.engine.constraints.literals import MAX_CHARS, literal
from vdiff_grpc.engine.constraints.schema import schema_regex

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def calls_regex(constraint: CallsConstraint, otherwise: str | None, nested: int) -> str:
    """otherwise: the regex of an answer without calls. nested: as in schema_regex.

    Raises ConstraintError.
    """
    share = len(constraint.tools)
    call = one_of(
        rf'\{{"name": "{literal(name)}", "arguments": {arguments}\}}'
        for number, name, schema in constraint.tools
        for arguments in (_arguments(schema, f"[{number}]", nested, share),)
    )
    if len(call) > MAX_CHARS:
        raise TooLargeError("", "the schemas are too large")
    if constraint.tagged:
        call = rf"{OPEN}\n{call}\n{CLOSE}"
    calls = rf"{call}(?:\n{call})*" if constraint.several else call
    if not constraint.free:
        return calls
    return f"{_without(OPEN)}(?:{calls})?" if otherwise is None else one_of((calls, otherwise))


def _arguments(schema: str, path: str, nested: int, share: int) -> str:
    """An object of what is declared, or an empty one: nothing else could be passed on."""
    path = f"{path}.parameters"
    try:
        told: Any = json.loads(schema) if schema else {}
        if not isinstance(told, dict):
            raise ConstraintError("", "the schema of arguments is an object")
        if told.setdefault("type", "object") != "object":
            raise ConstraintError("type", "arguments are an object")
        if not told.get("properties") and not set(told) & _MORE:
            told["additionalProperties"] = False
        return schema_regex(json.dumps(told), nested, share)
    except ConstraintError as error:
        error.path = f"{path}.{error.path}" if error.path else path
        raise
    except (ValueError, RecursionError) as error:
        raise ConstraintError(path, f"the schema cannot be read: {error}") from error


# With one of these a schema without properties declares something all the same.
_MORE = frozenset(
    (
        *("additionalProperties", "patternProperties", "minProperties", "required"),
        *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "enum", "const"),
    )
)


def _without(tag: str) -> str:
    """Any text in which the tag does not occur. Its first character occurs in it only once."""
    first = tag[0]
    begun = [literal(tag[:length]) for length in range(1, len(tag))]
    other = [f"{begun[i]}[^{first}{literal(tag[i + 1])}\\x00]" for i in range(len(begun))]
    broken = f"(?:{'|'.join(begun)})*"
    return f"(?:[^{first}\\x00]|{broken}(?:{'|'.join(other)}))*{broken}"
