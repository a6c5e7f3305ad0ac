"""What an answer must be, in the words of OpenAI's APIs and vLLM's, as the contract's constraint."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from vdiff_grpc import v1

from .errors import invalid, unsupported

TYPES = ("text", "json_object", "json_schema")
_TYPE = Annotated[str, Meta(extra_json_schema={"enum": list(TYPES)})]
_STRICT = Annotated[
    bool | None, Meta(description="Without effect: an answer always keeps to the schema.")
]
_SCHEMA = Annotated[
    dict[str, Any] | None,
    Meta(
        description="A JSON schema. A keyword that is not supported is refused with its path. "
        "Properties are written in the schema's order, and no others."
    ),
]
_ANY_OBJECT = b'{"type":"object"}'


class JsonSchemaFormat(Struct, kw_only=True):
    schema: _SCHEMA = None
    name: Annotated[str | None, Meta(description="Without effect.")] = None
    description: Annotated[str | None, Meta(description="Without effect.")] = None
    strict: _STRICT = None


class ResponseFormat(Struct, kw_only=True):
    """Chat's and completions'."""

    type: _TYPE
    json_schema: JsonSchemaFormat | None = None


class TextFormat(Struct, kw_only=True, omit_defaults=True):
    """The responses API's."""

    type: Annotated[str | None, Meta(extra_json_schema={"enum": [*TYPES, None]})] = None
    schema: _SCHEMA = None
    name: Annotated[str | None, Meta(description="Comes back with the answer.")] = None
    description: Annotated[str | None, Meta(description="Comes back with the answer.")] = None
    strict: _STRICT = None


def constraint_of(
    given: ResponseFormat | None, regex: str | None, choice: list[str] | None, where: str = ""
) -> tuple[v1.Constraint | None, str]:
    """The constraint, None without one, and what the client calls it. Raises ApiError.

    where: what stands before the fields' names.
    """
    found: list[tuple[v1.Constraint, str]] = []
    if given is not None:
        schema = given.json_schema.schema if given.json_schema is not None else None
        asked = _of_format(given.type, schema, f"{where}response_format", ".json_schema")
        if asked is not None:
            found.append((asked, f"{where}response_format"))
    if regex is not None:
        found.append((v1.Constraint(regex=regex), f"{where}guided_regex"))
    if choice is not None:
        choices = v1.Choice(options=choice)
        found.append((v1.Constraint(choice=choices), f"{where}guided_choice"))
    if len(found) > 1:
        first, second = found[0][1], found[1][1]
        raise invalid(f"{second} cannot be set with {first}: an answer is held to one", second)
    return found[0] if found else (None, "")


def text_constraint(given: TextFormat | None) -> v1.Constraint | None:
    """Raises ApiError."""
    if given is None:
        return None
    return _of_format(given.type or "text", given.schema, "text.format", "")


def used_format(given: TextFormat | None) -> TextFormat:
    """As an answer tells it."""
    return TextFormat(type="text") if given is None or given.type is None else given


def client_name(path: str, name: str) -> str:
    """Of a path in the contract's constraint: `constraint.json_schema.items` and its like."""
    kind, _, rest = path.removeprefix("constraint").lstrip(".").partition(".")
    if kind == "json_schema":
        schema = "json_schema.schema" if name.endswith("response_format") else "schema"
        return f"{name}.{schema}" + (f".{rest}" if rest else "")
    return name + rest.removeprefix("options")


def _of_format(
    kind: str, schema: dict[str, Any] | None, name: str, section: str
) -> v1.Constraint | None:
    if kind not in TYPES:
        raise unsupported(name, f"{name}.type ({kind[:40]!r}) is none of {', '.join(TYPES)}")
    if kind == "json_schema":
        if schema is None:
            field = f"{name}{section}.schema"
            raise invalid(f"{field} is required", field, "missing_required_parameter")
        return v1.Constraint(json_schema=msgspec.json.encode(schema).decode())
    if schema is not None:
        raise invalid(f"{name}: a schema needs type json_schema", name)
    return v1.Constraint(json_schema=_ANY_OBJECT.decode()) if kind == "json_object" else None
