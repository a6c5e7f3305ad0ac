"""Constraints to automata, each built once: bounded in time, memory and number.

Blocks while it builds: not for an event loop. Safe to use from several threads.
"""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from vdiff_grpc.engine.constraints import regex_process
from vdiff_grpc.engine.constraints.automaton import TokenAutomaton, Vocabulary, token_automaton
from vdiff_grpc.engine.constraints.calls import calls_regex
from vdiff_grpc.engine.constraints.kinds import (
    CallsConstraint,
    ChoiceConstraint,
    Constraint,
    ConstraintError,
    JsonSchemaConstraint,
    RegexConstraint,
    TooLargeError,
)
from vdiff_grpc.engine.constraints.literals import literal
from vdiff_grpc.engine.constraints.schema import NESTED, schema_regex

MAX_CHARS = 32768  # of a regex, or all options of a choice
MAX_SCHEMA_CHARS = 1 << 18
MAX_OPTIONS = 1024
BUILD_S = 10.0
_ANCHORS = "anchors and look-around cannot be used: the whole answer must match"
CACHE_BYTES = 256 << 20


class Compiler:
    """Automata of one model's vocabulary, the last used ones kept."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], max_bytes: int = CACHE_BYTES) -> None:
        """vocabulary: asked when it is first needed."""
        self._make = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Constraint, TokenAutomaton] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def build(self, constraint: Constraint) -> TokenAutomaton:
        """Raises ConstraintError."""
        with self._lock:
            if found := self._kept.get(constraint):
                self._kept.move_to_end(constraint)
                return found
        table, accepting = text_automaton(constraint)
        automaton = token_automaton(table, accepting, self.vocabulary())
        with self._lock:
            if constraint not in self._kept:
                self._kept[constraint] = automaton
                self._num_bytes += _num_bytes(constraint, automaton)
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                self._num_bytes -= _num_bytes(*self._kept.popitem(last=False))
        return automaton

    def has(self, constraint: Constraint) -> bool:
        """Whether it is built already."""
        with self._lock:
            return constraint in self._kept

    def vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make()
            return self._vocabulary


def text_automaton(constraint: Constraint) -> tuple[np.ndarray, np.ndarray]:
    """Over bytes. Raises ConstraintError.

    Where a schema refers to itself it is nested less deeply if it would be too large; never because
    it takes too long, so that every machine builds the same.
    """
    has_schema = isinstance(constraint, JsonSchemaConstraint | CallsConstraint)
    tried, error = "", TooLargeError("", "it is too large")
    for nested in NESTED if has_schema else NESTED[:1]:
        try:
            pattern = regex_of(constraint, nested)
            if pattern == tried:
                break
            tried = pattern
            return byte_automaton(pattern)
        except TooLargeError as found:
            error = found
            if not error.nests:
                break
    raise error


def regex_of(constraint: Constraint, nested: int = NESTED[0]) -> str:
    """The regex that whole answers match. Raises ConstraintError."""
    match constraint:
        case RegexConstraint(pattern):
            _check_length(pattern, "regex")
            if "\0" in pattern:
                raise ConstraintError("", "regex contains a NUL, which is never generated")
            whole = _unanchored(pattern)
            if _has_anchor(whole):
                raise ConstraintError("", _ANCHORS)
            return whole
        case ChoiceConstraint(options):
            if not 1 <= len(options) <= MAX_OPTIONS:
                raise ConstraintError(
                    "options", f"choice has {len(options)} options; 1 to {MAX_OPTIONS} are allowed"
                )
            _check_length("".join(options), "choice")
            for index, option in enumerate(options):
                if not option or "\0" in option:
                    what = "is empty" if not option else "contains a NUL, which is never generated"
                    raise ConstraintError(f"options[{index}]", f"option {index} {what}")
            return "|".join(map(literal, options))
        case JsonSchemaConstraint(schema):
            _check_length(schema, "json_schema", MAX_SCHEMA_CHARS)
            return schema_regex(schema, nested)
        case CallsConstraint(tools, otherwise=other):
            said = "".join(schema for _, _, schema in tools)
            _check_length(said, "parameters of all tools", MAX_SCHEMA_CHARS)
            without = None if other is None else regex_of(other, nested)
            return calls_regex(constraint, without, nested)


def _num_bytes(constraint: Constraint, automaton: TokenAutomaton) -> int:
    match constraint:
        case RegexConstraint(text) | JsonSchemaConstraint(text):
            return automaton.num_bytes + 4 * len(text)
        case ChoiceConstraint(options):
            return automaton.num_bytes + 4 * sum(map(len, options))
        case CallsConstraint(tools):
            return automaton.num_bytes + 4 * sum(len(schema) for _, _, schema in tools)


def _check_length(text: str, name: str, limit: int = MAX_CHARS) -> None:
    if len(text) > limit:
        raise ConstraintError("", f"{name} has {len(text)} characters; the limit is {limit}")


def _unanchored(pattern: str) -> str:
    """Whole answers match anyway: one ^ before and one $ after say nothing new."""
    if pattern.startswith("^") and pattern.endswith("$") and "|" not in pattern:
        backslashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
        if backslashes % 2 == 0:
            return pattern[1:-1]
    return pattern


def _has_anchor(pattern: str) -> bool:
    """Whether one stands outside classes of characters: inside our own frame it would never match."""
    depth, at = 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            if not depth and pattern[at + 1 : at + 2] in ("b", "B", "A", "z", "<", ">"):
                return True
            at += 1
        elif char == "[":
            depth += 1
            at += pattern[at + 1 : at + 2] == "^"
            at += pattern[at + 1 : at + 2] == "]"  # as itself
        elif char == "]" and depth:
            depth -= 1
        elif char in "^$" and not depth:
            return True
        at += 1
    return False


def byte_automaton(pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """In a process that may take so much and no more. Raises ConstraintError."""
    try:
        asked = pattern.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError("", "half a character (a surrogate) is no text") from error
    command = [sys.executable, "-m", regex_process.__name__]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConstraintError("", f"it takes more than {BUILD_S:g} s to build") from error
    if done.returncode == regex_process.REFUSED:
        raise ConstraintError("", _first_line(done.stdout.decode("utf-8", "replace")))
    if done.returncode == regex_process.TOO_LARGE:
        raise TooLargeError("", f"it needs more than {regex_process.MAX_STATES} states")
    if done.returncode:
        raise ConstraintError("", "it takes too much time or memory to build")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        return arrays["table"], arrays["accepting"]


def _first_line(text: str) -> str:
    if "universal start state" in text or "no transitions" in text:
        return _ANCHORS
    return "cannot be built: " + (text.splitlines() or [""])[0].removeprefix("Failed to build DFA ")
