"""Turns what a request's holes must be into automata, or says why that cannot be. Knows no canvas."""

from __future__ import annotations

from vdiff_grpc.engine.constraints.automaton import HoleConstraint, Vocabulary
from vdiff_grpc.engine.constraints.calls import CLOSE
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.constraints.kinds import (
    CallsConstraint,
    ChoiceConstraint,
    Constraint,
    ConstraintError,
    JsonSchemaConstraint,
    RegexConstraint,
)
from vdiff_grpc.engine.prompt_types import ChatPrompt, InfillPrompt
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import (
    AdaptiveParallel,
    Editing,
    FreeDave,
    Strategy,
    UniformNoise,
)
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.tool_checks import calls_constraint
from vdiff_grpc.engine.types import ModelInfo, Request, Span, SpanKind

# Rules that fill in other tokens than those drawn for the canvas as it stands.
_OWN_TOKENS: dict[type[Strategy], str] = {
    AdaptiveParallel: "it draws tokens of its own from a second model",
    Editing: "it replaces tokens that are filled",
    FreeDave: "its drafts are canvases that are not there yet",
    UniformNoise: "it replaces tokens that are filled",
}

_FIELDS: dict[type[Constraint], str] = {
    RegexConstraint: "regex",
    ChoiceConstraint: "choice",
    JsonSchemaConstraint: "json_schema",
    CallsConstraint: "tools",
}


def compiler_for(info: ModelInfo, tokenizer: Tokenizer | None) -> Compiler:
    """Of the tokens that the model may generate."""

    def vocabulary() -> Vocabulary:
        assert tokenizer is not None, "check_kind refuses models without a tokenizer"
        barred = {info.blank_id, *info.suppressed_ids}
        usable = [i for i in tokenizer.defined_ids - barred if i < info.vocab_size]
        tokens = {i: tokenizer.token_bytes(i) for i in sorted(usable)}
        ends = tuple(i for i in info.end_token_ids if i in tokens)
        return Vocabulary(tokens, ends, info.vocab_size)

    return Compiler(vocabulary)


def must_build(request: Request, compiler: Compiler, tokenizer: Tokenizer | None) -> bool:
    """Whether validation has a constraint to build."""
    asked = wanted(request, Violations(), tokenizer).values()
    return not all(compiler.has(constraint) for _, constraint in asked)


def wanted(
    request: Request, bad: Violations, tokenizer: Tokenizer | None = None
) -> dict[int, tuple[str, Constraint]]:
    """By the number of its hole: the constraint, and its field."""
    prompt, own = request.prompt, request.constraint
    if isinstance(prompt, ChatPrompt) and prompt.may_call:
        return {0: ("chat", calls_constraint(prompt, own, tokenizer))}
    if not isinstance(prompt, InfillPrompt):
        return {} if own is None else {0: ("constraint", own)}
    if own is not None:
        bad.add("constraint", "constraint cannot be set with infill: its holes have their own")
    found: dict[int, tuple[str, Constraint]] = {}
    number = 0
    for index, segment in enumerate(prompt.segments):
        if isinstance(segment, str | tuple):
            continue
        if segment.constraint is not None:
            found[number] = (f"infill.segments[{index}].hole.constraint", segment.constraint)
        number += 1
    return found


def check_kind(
    field: str,
    request: Request,
    strategy: Strategy,
    info: ModelInfo,
    tokenizer: Tokenizer | None,
    bad: Violations,
) -> None:
    """What no constraint can stand beside."""
    name, what = "constraint", "a constraint, which says"
    if field == "chat":
        field, name, what = "chat.tools", "tools", "tools, whose form says"
    if tokenizer is None:
        bad.add(field, f"{name}: the model {info.name} has no tokenizer")
    if why := _OWN_TOKENS.get(type(strategy)):
        bad.add(field, f"{name} cannot be used with the strategy {strategy.NAME}: {why}")
    if request.params.stop_strings or request.params.stop_token_ids:
        bad.add("sampling.stop", f"stop cannot be used with {what} what is whole")


def resolve_constraints(
    found: dict[int, tuple[str, Constraint]],
    spans: list[Span],
    ranges: tuple[tuple[int, int], ...],
    ignore_eos: bool,
    compiler: Compiler,
    bad: Violations,
) -> tuple[HoleConstraint, ...]:
    """Builds them. What is wrong is added to `bad`, with the field's path.

    ranges: of the holes' lengths, where some are still to be chosen; the spans have the longest.
    """
    holes = [number for number, span in enumerate(spans) if span.kind is SpanKind.HOLE]
    resolved = []
    for number, (field, constraint) in found.items():
        field = f"{field}.{_FIELDS[type(constraint)]}"
        at = holes[number]
        length = spans[at].length
        least = ranges[number][0] if ranges else length
        # an end token is not drawn where something follows
        exact = ignore_eos or any(s.kind is SpanKind.FROZEN for s in spans[at:])
        exact = exact or number + 1 < len(holes)
        before = [span for span in spans[:at] if span.kind is SpanKind.HOLE]
        is_open = len(before) > sum(other < number for other in found)
        if is_open and not exact and spans[at - 1].kind is SpanKind.HOLE:
            bad.add(field, "constraint: a hole right before it could end the answer")
            continue
        other = constraint.otherwise if isinstance(constraint, CallsConstraint) else None
        try:
            if other is not None:
                compiler.build(other)  # what is wrong with it is said of its own field
                other = None
            automaton = compiler.build(constraint)
        except ConstraintError as error:
            name = _FIELDS[type(other or constraint)]
            path = field if other is None else f"constraint.{name}"
            path += ("." if error.path and error.path[0] != "[" else "") + error.path
            bad.add(path, f"{name}: {error.why}")
            continue
        fits = automaton.fits(length, exact=exact)
        if fits[least:, 0].any():
            resolved.append(HoleConstraint(number, automaton, fits, _ending(constraint)))
            continue
        shortest = automaton.shortest()
        if shortest > length:
            why = f"its shortest answer has {shortest} tokens, more than there are ({length})"
        else:
            many = f"exactly {length}" if least == length else f"from {least} to {length}"
            why = f"no answer has {many} tokens, and no end token can stand here"
        bad.add(field, f"{_FIELDS[type(constraint)]}: {why}")
    return tuple(resolved)


def _ending(constraint: Constraint) -> str:
    """What tells an answer that is whole from one that is cut off, where both are allowed."""
    if isinstance(constraint, CallsConstraint) and constraint.free and not constraint.otherwise:
        return CLOSE
    return ""
