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


Constraint = RegexConstraint | ChoiceConstraint | JsonSchemaConstraint


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
