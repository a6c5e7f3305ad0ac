"""What a caller may ask an answer to be, and why it cannot be. Knows no automaton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RegexConstraint:
    """The whole answer matches; in the syntax of Rust's `regex` crate."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ChoiceConstraint:
    """The answer is one of these."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JsonSchemaConstraint:
    """The answer is JSON that the schema, itself JSON, allows."""

    schema: str


@dataclass(frozen=True, slots=True)
class CallsConstraint:
    """Calls of functions.

    tools: number, name and schema of the arguments (JSON, or empty) of each that may be called.
    tagged: each call stands between tags. several: one or more, else exactly one. free: text
    without a call may stand before them or alone; with `otherwise` alone only, and held to that.
    """

    tools: tuple[tuple[int, str, str], ...]
    tagged: bool = False
    several: bool = False
    free: bool = False
    otherwise: RegexConstraint | ChoiceConstraint | JsonSchemaConstraint | None = None


Constraint = RegexConstraint | ChoiceConstraint | JsonSchemaConstraint | CallsConstraint


class ConstraintError(Exception):
    """No automaton for it. path: below the constraint's own field; empty: the whole."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path
        self.why = why


class NoValueError(ConstraintError):
    """No value satisfies a schema: fatal only where one must stand."""


class TooLargeError(ConstraintError):
    """A limit that does not depend on the machine's speed is passed.

    nests: less might do, of a schema that refers to itself.
    """

    nests = True
