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
)
from vdiff_grpc.engine.constraints.literals import literal
from vdiff_grpc.engine.constraints.schema import schema_regex

MAX_CHARS = 32768  # of a regex, a schema, or all options of a choice
MAX_OPTIONS = 1024
MAX_REGEX_CHARS = 1 << 20  # that a schema becomes
BUILD_S = 10.0
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
        pattern = regex_of(constraint)
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make()
        table, accepting = _byte_automaton(pattern)
        automaton = token_automaton(table, accepting, self._vocabulary)
        with self._lock:
            if constraint not in self._kept:
                self._kept[constraint] = automaton
                self._num_bytes += automaton.num_bytes
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return automaton


def regex_of(constraint: Constraint) -> str:
    """The regex that whole answers match. Raises ConstraintError."""
    match constraint:
        case RegexConstraint(pattern):
            _check_length(pattern, "regex")
            if "\0" in pattern:
                raise ConstraintError("", "regex contains a NUL, which is never generated")
            return _unanchored(pattern)
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
            _check_length(schema, "json_schema")
            pattern = schema_regex(schema)
            if len(pattern) > MAX_REGEX_CHARS:
                raise ConstraintError("", "the schema is too large")
            return pattern
        case CallsConstraint(tools, otherwise=other):
            _check_length("".join(schema for _, _, schema in tools), "parameters of all tools")
            pattern = calls_regex(constraint, None if other is None else regex_of(other))
            if len(pattern) > MAX_REGEX_CHARS:
                raise ConstraintError("", "the schemas are too large")
            return pattern


def _check_length(text: str, name: str) -> None:
    if len(text) > MAX_CHARS:
        raise ConstraintError("", f"{name} has {len(text)} characters; the limit is {MAX_CHARS}")


def _unanchored(pattern: str) -> str:
    """Whole answers match anyway: one ^ before and one $ after say nothing new."""
    if pattern.startswith("^") and pattern.endswith("$") and "|" not in pattern:
        backslashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
        if backslashes % 2 == 0:
            return pattern[1:-1]
    return pattern


def _byte_automaton(pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """In a process that may take so much and no more. Raises ConstraintError."""
    command = [sys.executable, "-m", regex_process.__name__]
    try:
        done = subprocess.run(
            command, input=pattern.encode(), capture_output=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConstraintError("", f"it takes more than {BUILD_S:g} s to build") from error
    if done.returncode == regex_process.REFUSED:
        raise ConstraintError("", _first_line(done.stdout.decode("utf-8", "replace")))
    if done.returncode == regex_process.TOO_LARGE:
        raise ConstraintError("", f"it needs more than {regex_process.MAX_STATES} states")
    if done.returncode:
        raise ConstraintError("", "it takes too much time or memory to build")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        return arrays["table"], arrays["accepting"]


def _first_line(text: str) -> str:
    if "universal start state" in text or "no transitions" in text:
        return "anchors and look-around cannot be used: the whole answer must match"
    return "cannot be built: " + (text.splitlines() or [""])[0].removeprefix("Failed to build DFA ")
