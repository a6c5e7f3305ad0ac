"""What crosses between the server and the engine's process. Plain, picklable, no torch."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from vdiff_grpc.engine.events import Event
from vdiff_grpc.engine.types import EngineState, ResolvedRequest, Statistics

# --- commands: server -> engine ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Add:
    """`key` is the server's own number for the request: request ids may repeat.

    is_watched: somebody wants its Marks.
    """

    key: int
    request: ResolvedRequest
    is_watched: bool = False


@dataclass(frozen=True, slots=True)
class Abort:
    key: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Gives a request more time: `deadline_ns` as in ResolvedRequest."""

    key: int
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Ends the loop after the current step; open requests get no further word."""


Command = Add | Abort | Extend | Shutdown

# --- reports: engine -> server ----------------------------------------------


@dataclass(frozen=True, slots=True)
class StateChanged:
    """`detail`: why, with ERROR. `device`, `dtype`: as resolved, once READY.

    by_itself: as of Ended, with ERROR.
    """

    state: EngineState
    detail: str = ""
    device: str = ""
    dtype: str = ""
    by_itself: bool = True


@dataclass(frozen=True, slots=True)
class Spent:
    """The work done for a request that ended without Finished."""

    key: int
    completion_tokens: int
    forward_passes: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase of a watched request: it waits (the server's own word), its first step begins or is
    over, a block is filled.

    at_ns: time.monotonic_ns(). forward_passes: of the output so far.
    """

    key: int
    phase: Literal["queued", "begun", "first_step", "block"]
    at_ns: int
    output_index: int = 0
    block: int = 0
    forward_passes: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Of a step that was computed."""

    duration_ns: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class StepReport:
    """All events of one engine step, in order, and the counters after it.

    timing: None when no row took part, or all of them failed.
    """

    events: tuple[tuple[int, Event], ...]
    statistics: Statistics
    spent: tuple[Spent, ...] = ()
    marks: tuple[Mark, ...] = ()
    timing: Timing | None = None


Report = StateChanged | StepReport


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker is gone. by_itself: of its own doing, not killed from outside."""

    reason: str
    by_itself: bool

    @classmethod
    def with_code(cls, code: int | None) -> Ended:
        """Of a process, by its exit code."""
        if code is not None and code < 0:
            number = signal.Signals(-code)
            return cls(f"killed by {number.name}", number is not signal.SIGKILL)
        return cls(f"exit code {code}", by_itself=True)
