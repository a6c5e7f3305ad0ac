"""What the engine says of a request, step by step and at its end. Knows no torch.

Everything here is frozen and picklable: it crosses the process boundary.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The most likely tokens of one position, falling. logprobs: natural, as of Tokens.confidences."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    token_bytes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Generated tokens as parallel columns, in the order of their canvas positions."""

    ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    token_bytes: tuple[bytes, ...] = ()
    text_offsets: tuple[int, ...] = ()
    top_tokens: tuple[TopTokens, ...] = ()  # empty unless SamplingParams.top_logprobs

    def __add__(self, other: Tokens) -> Tokens:
        columns = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return Tokens(*columns)


class FinishReason(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    PARTIAL = "partial"


class UpdateKind(enum.Enum):
    UNMASK = "unmask"
    REVISE = "revise"
    REMASK = "remask"


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The holes' lengths are chosen. Comes first, of requests that left some of them open."""

    hole_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepUpdate:
    """Changes to one output's canvas; parallel columns in the order of positions."""

    output_index: int
    step: int
    block: int
    forward_passes: int
    kind: UpdateKind
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    texts: tuple[str, ...]
    hurried: bool = False


@dataclass(frozen=True, slots=True)
class CanvasSnapshot:
    """One output's whole canvas."""

    output_index: int
    step: int
    block: int
    forward_passes: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """Text and tokens that follow what was committed before and can no longer change."""

    output_index: int
    text: str
    tokens: Tokens
    hole_index: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One finished output."""

    index: int
    seed: int
    text: str
    tokens: Tokens
    hole_texts: tuple[str, ...]  # empty unless the request was a template
    finish_reason: FinishReason
    stop: str | int | None  # the stop string, or the end token's id
    forward_passes: int
    steps: int
    blocks: int
    remasked: int
    revised: int
    canvas: tuple[int, ...]
    computed_tokens: int = 0
    shared_prompt_tokens: int = 0
    hurried: bool = False
    score: float | None = None  # with best_of: log-likelihood per token, in nats
    trajectory: tuple[StepUpdate, ...] = ()  # with return_trajectory


@dataclass(frozen=True, slots=True)
class Finished:
    """The request's end: all outputs in the order of their index. Times in ns since arrival.

    others: with best_of, the candidates that are not among the outputs.
    shared_prompt_tokens: of the candidate that came first; the others share what it has read.
    """

    outputs: tuple[Output, ...]
    queue_time_ns: int
    time_to_first_commit_ns: int
    total_time_ns: int
    others: tuple[Output, ...] = ()
    shared_prompt_tokens: int = 0

    @property
    def candidates(self) -> tuple[Output, ...]:
        """All that was computed for the request."""
        return self.outputs + self.others

    @property
    def completion_tokens(self) -> int:
        return sum(len(output.tokens.ids) for output in self.candidates)

    @property
    def forward_passes(self) -> int:
        return sum(output.forward_passes for output in self.candidates)


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer. `error` is one of errors.py's."""

    error: Exception


StreamEvent = StepUpdate | CanvasSnapshot | Committed | Finished | Failed
Event = LaidOut | StreamEvent
