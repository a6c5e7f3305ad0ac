"""A JSON schema as a regex of JSON that it allows. Knows no automaton.

Whatever matches is valid; not all that is valid matches: properties stand in the schema's order, none
but the declared ones, and where any value is allowed, or a schema refers to itself, it is nested only
so deep. A keyword that this cannot hold an answer to is refused by its path, never passed over.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from vdiff_grpc.engine.constraints import matching
from vdiff_grpc.engine.constraints.arrays import array_regex
from vdiff_grpc.engine.constraints.combining import Logic, merged, widened
from vdiff_grpc.engine.constraints.dialects import (
    ALSO,
    EXCEPT,
    KEYWORDS,
    TYPES,
    Applied,
    Schema,
    at,
    normal,
    types_of,
)
from vdiff_grpc.engine.constraints.json_text import anything, dumped, one_of
from vdiff_grpc.engine.constraints.json_values import equal, holds, is_a
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError, TooLargeError
from vdiff_grpc.engine.constraints.literals import MAX_CHARS, literal
from vdiff_grpc.engine.constraints.numbers import number_regex
from vdiff_grpc.engine.constraints.objects import object_regex
from vdiff_grpc.engine.constraints.strings import string_regex

ANY_DEPTH = 1  # arrays and objects inside a value of which nothing is said
NESTED = (2, 1, 0)  # how often a reference may lead back to itself: the first that can be built
MAX_DEPTH = 64
MAX_BRANCHES = 256
MAX_WORK = 40000  # schemas looked at, however often each; about a second


def schema_regex(text: str, nested: int = NESTED[0], share: int = 1) -> str:
    """The regex for a schema given as JSON. Raises ConstraintError with the keyword's path.

    share: by how many schemas the work is shared that may be done.
    """
    matching.begin(share)
    try:
        root = json.loads(text, parse_constant=_refuse_constant)
        writer = _Writer(root, nested, MAX_WORK // share, is_narrowed="unevaluated" in text)
        return writer.value(root, "", 0)
    except TooLargeError as error:
        error.nests = writer.num_loops > 0
        raise
    except RecursionError as error:
        raise ConstraintError("", "the schema is nested too deeply") from error
    except ValueError as error:
        raise ConstraintError("", f"the schema is no JSON: {error}") from error
    except OverflowError as error:
        raise ConstraintError("", f"a number of the schema is too large: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class _Writer:
    """Writes the regexes of one document's schemas."""

    def __init__(self, root: Any, nested: int, most_work: int, *, is_narrowed: bool) -> None:
        """is_narrowed: some of it may be written more narrowly than it is meant."""
        self._is_narrowed = is_narrowed
        self._most_work = most_work
        self._root = root
        self._nested = nested
        self._open: list[str] = []  # references that are being written
        self._written: dict[str, str] = {}
        self._work = self._num_chars = self.num_loops = 0
        self._has_bases = _has_bases(root)
        self._logic = Logic(self._resolved, self._spend)

    def value(self, schema: Any, path: str, depth: int) -> str:
        """One value; a group of its own. Raises NoValueError where there is none."""
        self._spend(path)
        if depth > MAX_DEPTH:
            raise ConstraintError(path, f"the schema is nested deeper than {MAX_DEPTH}")
        schema = normal(schema, path)
        if schema[ALSO]:
            first, *others = sorted(schema[ALSO], key=_turn)
            written = self._applied(first, {**schema, ALSO: tuple(others)}, depth + 1)
        else:
            written = self._alone(schema, path, depth)
        self._num_chars += len(written)
        if self._num_chars > 64 * MAX_CHARS or len(written) > MAX_CHARS:
            raise TooLargeError(path, "the schema is too large")
        return written

    def _spend(self, path: str) -> None:
        self._work += 1
        if self._work > self._most_work:
            raise TooLargeError(path, "the schema asks for too much work")

    # --- $ref, allOf, anyOf and their like --------------------------------------

    def _applied(self, applied: Applied, rest: Schema, depth: int) -> str:
        said, here = applied.said, applied.path
        if applied.keyword == "$ref":
            return self._reference(said, rest, here, depth)
        if applied.keyword == "allOf":
            whole: Any = rest
            for number, branch in enumerate(_branches(applied)):
                whole = merged(whole, branch, f"{here}[{number}]")
            return self.value(whole, here, depth)
        written, empty = [], None
        for branch, where in self._alternatives(applied, rest):
            try:
                written.append(self.value(merged(rest, branch, where), where, depth))
            except NoValueError as error:
                empty = empty or error
        if not written:
            raise empty or NoValueError(here, "no value satisfies it")
        return one_of(dict.fromkeys(written))

    def _alternatives(self, applied: Applied, rest: Schema) -> list[tuple[Any, str]]:
        """One of which, beside the rest, is as much as the keyword asks for; each with its path."""
        said, here = applied.said, applied.path
        match applied.keyword:
            case "not":
                return [(schema, here) for schema in self._opposites(said, here)]
            case "if":
                asked, then, otherwise = said
                others = [] if otherwise is False else self._opposites(asked, here)
                return [
                    (merged(asked, then, here), here),
                    *((merged(opposite, otherwise, here), here) for opposite in others),
                ]
            case "dependent":
                name, more = said
                absent = ({"properties": {name: False}}, here)
                if name not in rest.get("properties", {}) and name not in rest.get("required", ()):
                    return [absent]  # it is not written
                present = merged({"required": [name]}, more, here)
                return [absent, (present, here)]
        branches = _branches(applied)
        places = [f"{here}[{number}]" for number in range(len(branches))]
        if applied.keyword == "anyOf":
            return list(zip(branches, places, strict=True))
        return self._exactly_one(branches, places, rest, here)

    def _exactly_one(
        self, branches: list[Any], places: list[str], rest: Schema, here: str
    ) -> list[tuple[Any, str]]:
        left: list[list[Any]] = [[branch] for branch in branches]
        if self._is_narrowed:
            branches = [widened(branch) for branch in branches]
        whole = [merged(rest, b, p) for b, p in zip(branches, places, strict=True)]
        for one, other in combinations(range(len(branches)), 2):
            if self._logic.are_apart(whole[one], whole[other]):
                continue
            for mine, theirs in ((one, other), (other, one)):
                found = [self._logic.without(s, branches[theirs], here) for s in left[mine]]
                if None in found:
                    why = f"oneOf: an answer could satisfy both of its schemas {one} and {other}"
                    raise ConstraintError(here, why)
                left[mine] = [schema for part in found for schema in part or ()]
        return [(s, place) for some, place in zip(left, places, strict=True) for s in some]

    def _opposites(self, schema: Any, path: str) -> list[Any]:
        found = self._logic.opposites(schema, path)
        if not found and schema not in (True, {}):
            raise ConstraintError(path, "the opposite of this schema is not supported")
        return found

    def _reference(self, target: Any, rest: Schema, path: str, depth: int) -> str:
        found = self._resolved(target, path)
        loops = self.num_loops
        if target in self._open:
            self.num_loops += 1
            if len(self._open) - len(set(self._open)) >= self._nested:
                why = f"the schema refers to itself without an end ({target})"
                raise NoValueError(path, why)
        alone = len(rest) == 1 and not rest[ALSO]
        if alone and target in self._written:
            return self._written[target]
        self._open.append(target)
        try:
            written = self.value(merged(rest, found, path), path, depth)
        finally:
            self._open.pop()
        if alone and loops == self.num_loops:  # else it depends on what is open
            self._written[target] = written
        return written

    def _resolved(self, target: Any, path: str) -> Any:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise ConstraintError(path, "$ref must be a reference inside the schema (#/...)")
        if self._has_bases:
            raise ConstraintError(path, "$ref cannot be used where a schema inside has an $id")
        found = self._root
        for part in unquote(target).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise ConstraintError(path, f"$ref ({target}) leads nowhere")
        return found

    # --- one schema, without others beside it ----------------------------------

    def _alone(self, schema: Schema, path: str, depth: int) -> str:
        excluded = schema.get(EXCEPT, [])
        named = types_of(schema)
        if "enum" in schema:
            allowed = [
                value
                for value in schema["enum"]
                if not any(equal(value, other) for other in excluded)
                and (not named or any(is_a(value, name) for name in named))
                and self._holds(value, schema, path)
            ]
            if not allowed:
                raise NoValueError(path, "no value is allowed")
            return one_of(dict.fromkeys(literal(dumped(value)) for value in allowed))
        types = named or _inferred(schema)
        if not types:
            return anything(ANY_DEPTH)
        written, empty = [], None
        for name in types:
            try:
                written.append(self._of_type(name, schema, path, depth))
            except NoValueError as error:
                empty = empty or error
        if not written:
            raise empty or NoValueError(path, "no value is allowed")
        return one_of(written)

    def _holds(self, value: Any, schema: Schema, path: str) -> bool:
        """Whether what is said beside an enum holds for one of its values."""
        for keyword in schema:
            for name, keywords in KEYWORDS.items():
                if keyword in keywords and is_a(value, name):
                    found = holds(value, keyword, schema[keyword])
                    if found is None:
                        raise ConstraintError(
                            at(path, keyword), f"{keyword} cannot stand beside enum or const"
                        )
                    if not found:
                        return False
        return True

    def _of_type(self, name: str, schema: Schema, path: str, depth: int) -> str:
        excluded = [value for value in schema.get(EXCEPT, ()) if is_a(value, name)]
        if excluded and name not in ("string", "boolean", "null"):
            raise ConstraintError(path, f"values of the type {name} cannot be excluded")

        def inner(schema: Any, path: str) -> str:
            return self.value(schema, path, depth + 1)

        match name:
            case "string":
                return string_regex(schema, excluded, path)
            case "integer" | "number":
                return number_regex(name, schema, path)
            case "boolean" | "null":
                values: list[Any] = [True, False] if name == "boolean" else [None]
                left = [dumped(v) for v in values if v not in excluded]
                if not left:
                    raise NoValueError(path, "no value is allowed")
                return one_of(left)
            case "array":
                return array_regex(schema, path, inner)
        return object_regex(schema, path, inner)


def _turn(applied: Applied) -> int:
    """What is certain comes first, so that what has alternatives can see it."""
    order = ("$ref", "allOf", "if", "not", "dependent", "anyOf", "oneOf")
    return order.index(applied.keyword)


def _branches(applied: Applied) -> list[Any]:
    if not isinstance(applied.said, list) or not 1 <= len(applied.said) <= MAX_BRANCHES:
        why = f"{applied.keyword} must be a list of 1 to {MAX_BRANCHES} schemas"
        raise ConstraintError(applied.path, why)
    return applied.said


def _inferred(schema: Schema) -> list[str]:
    """Without `type` the keywords that are there tell it; none: any."""
    said = set(schema) - {ALSO, EXCEPT}
    if said == {"format"}:
        return ["string"]
    found = [name for name in TYPES if set(KEYWORDS.get(name, ())) & (said - {"format"})]
    if "number" in found:
        found.remove("integer")
    if not found and schema.get(EXCEPT):
        return ["string", "boolean", "null"]
    return found


def _has_bases(root: Any) -> bool:
    """Whether a schema inside has an id that references in it are relative to."""
    old = isinstance(root, dict) and str(root.get("$schema", "")).find("draft-0") >= 0
    names = ("$id", "id") if old else ("$id",)
    ahead = list(root.values()) if isinstance(root, dict) else []
    while ahead:
        here = ahead.pop()
        if isinstance(here, dict):
            ids = [here.get(name) for name in names]
            if any(isinstance(i, str) and not i.startswith("#") for i in ids):
                return True
            ahead.extend(here.values())
        elif isinstance(here, list):
            ahead.extend(here)
    return False
