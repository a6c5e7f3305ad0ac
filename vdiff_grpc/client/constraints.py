"""What an answer, or what fills a hole, must be: one function per case of `Constraint.kind`.

generation.proto says what each means; the server says what it cannot hold to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from vdiff_grpc import v1


class _Model(Protocol):
    """A class of pydantic's, which need not be installed."""

    def model_json_schema(self) -> dict[str, Any]: ...


Schema: TypeAlias = str | bool | Mapping[str, Any] | _Model


def regex(pattern: str) -> v1.Constraint:
    """The whole text matches, in the syntax of Rust's regexes."""
    return v1.Constraint(regex=pattern)


def choice(*options: str) -> v1.Constraint:
    """The text is one of these."""
    return v1.Constraint(choice=v1.Choice(options=options))


def json_schema(schema: Schema) -> v1.Constraint:
    """The text is JSON that the schema allows: a dict, the schema's own text, or a pydantic model.

    ValueError for what cannot be written as JSON.
    """
    if isinstance(schema, str):
        return v1.Constraint(json_schema=schema)
    if not isinstance(schema, Mapping | bool):
        schema = schema.model_json_schema()
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema cannot be written as JSON: {error}") from None
    return v1.Constraint(json_schema=text)


def checked(constraint: v1.Constraint | None) -> v1.Constraint | None:
    """What was given as a constraint. TypeError for what is none, such as a bare pattern."""
    if constraint is None or isinstance(constraint, v1.Constraint):
        return constraint
    raise TypeError(
        f"constraint ({constraint!r:.40}) must be regex(...), choice(...) or json_schema(...)"
    )
