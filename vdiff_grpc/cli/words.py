"""Says in words what was asked for and what came of it. Knows neither gRPC nor terminals."""

from __future__ import annotations

from dataclasses import dataclass

from vdiff_grpc import v1
from vdiff_grpc.client.canvas import Canvas

NEWLINE = "↵"
MAX_CONSTRAINT = 40  # characters of one that are shown


@dataclass(frozen=True, slots=True)
class Given:
    """What the stream does not say: the caller's own words, and the model's end tokens.

    texts: the text before the first hole, and what follows each. holes: as they were asked for,
    of a template.
    """

    texts: tuple[str, ...] = ("",)
    end_token_ids: frozenset[int] = frozenset()
    holes: tuple[v1.Hole, ...] = ()
    constraint: v1.Constraint | None = None
    budget_s: float | None = None

    def after(self, num_holes: int) -> str:
        """The text that follows so many holes."""
        return self.texts[num_holes] if num_holes < len(self.texts) else ""


def answer_title(end: v1.OutputEnd | None, index: int) -> str:
    """The line above one of several answers."""
    return f"--- answer {index + 1}{score_words(end)} ---"


def score_words(end: v1.OutputEnd | None) -> str:
    """` · score -1.92` where the answer was judged."""
    return f" · score {end.score:.3f}" if end is not None and end.HasField("score") else ""


def asked(canvas: Canvas, given: Given) -> list[str]:
    """What the answer is held to, a line each: the holes with their lengths, the constraint, the time."""
    lines = []
    if given.holes:
        holes = (
            hole_words(hole, len(positions), canvas.grows)
            for hole, positions in zip(given.holes, canvas.holes, strict=True)
        )
        lines.append("holes: " + ", ".join(holes))
    if given.constraint is not None:
        lines.append("constraint: " + constraint_words(given.constraint))
    if given.budget_s is not None:
        lines.append(f"latency budget: {given.budget_s:g} s")
    return lines


def hole_words(hole: v1.Hole, length: int, grows: bool) -> str:
    """`5 of 2..12, regex [0-9]+`: the length that it has, and what was asked for.

    grows: while it is filled, so that its length is not known.
    """
    words = str(length)
    if hole.HasField("max_length"):
        asked = f"{hole.min_length or 1}..{hole.max_length}"
        words = asked if grows else f"{words} of {asked}"
    return words + (f" {constraint_words(hole.constraint)}" if hole.HasField("constraint") else "")


def constraint_words(constraint: v1.Constraint) -> str:
    """A constraint in one short line."""
    words = constraint.WhichOneof("kind") or "none"
    if constraint.HasField("regex"):
        words += f" {constraint.regex}"
    elif constraint.HasField("choice"):
        words += " " + " | ".join(option.strip() for option in constraint.choice.options)
    return flat(words if len(words) <= MAX_CONSTRAINT else words[: MAX_CONSTRAINT - 1] + "…")


def summary(canvas: Canvas, given: Given) -> str:
    """Two lines: what it cost, and how it ended."""
    finished = canvas.finished
    assert finished is not None
    metrics = finished.metrics
    cost = (
        count(finished.usage.completion_tokens, "token"),
        count(metrics.forward_passes, "forward pass", "forward passes"),
        f"{metrics.tokens_per_forward:.2f} tokens per forward",
        *([f"{metrics.remasked} masked again"] if metrics.remasked else []),
        *([f"{metrics.revised} revised"] if metrics.revised else []),
        time_words(metrics.total_time_ns / 1e9, given.budget_s),
    )
    ends = dict.fromkeys(end_reason(end) for end in finished.ends)
    seeds = [str(end.seed) for end in finished.ends]
    scores = [f"{end.score:.3f}" for end in finished.ends if end.HasField("score")]
    end = (
        *([hurry_words(canvas)] if metrics.hurried else []),
        f"ended by {', '.join(ends)}",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}",
        *([f"score {scores[0]}"] if len(scores) == 1 else []),  # several have them above
    )
    return " · ".join(cost) + "\n" + " · ".join(end)


def hurry_words(canvas: Canvas) -> str:
    """At how many steps more was filled than the strategy would have; a slow reader does not know."""
    steps = sum(output.num_hurried for output in canvas.outputs)
    return f"hurried at {count(steps, 'step')}" if steps else "hurried"


def time_words(seconds: float, budget_s: float | None) -> str:
    """What it took, of what it should have."""
    if budget_s is None:
        return f"{seconds:.2f} s"
    late = f", {seconds - budget_s:.2f} s late" if seconds > budget_s else ""
    return f"{seconds:.2f} s of {budget_s:g} s{late}"


def end_reason(end: v1.OutputEnd) -> str:
    """How an output ended, in a few words."""
    if end.finish_reason == v1.FINISH_REASON_PARTIAL:
        return "the deadline"
    if end.finish_reason == v1.FINISH_REASON_LENGTH:
        return "length"
    if end.WhichOneof("stop_match") == "stop_string":
        return f"stop string {end.stop_string!r}"
    if end.WhichOneof("stop_match") == "stop_token_id":
        return f"stop token {end.stop_token_id}"
    return "end of text"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 token`, `2 tokens`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def flat(text: str) -> str:
    """One line, and no control character that could move a terminal's cursor."""
    return printable(text).replace("\n", NEWLINE)


def printable(text: str) -> str:
    """The text without control characters other than the newline; a tab is a space."""
    return "".join(
        char if char == "\n" or char.isprintable() else " " if char.isspace() else "�"
        for char in text
    )
