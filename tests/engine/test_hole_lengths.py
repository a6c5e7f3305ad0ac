"""Holes whose length the engine chooses: what follows, in any company, is as if it had been asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.engine.tools import (
    GOLDEN,
    TINY,
    LogitsRecorder,
    add,
    finished,
    run_all,
    same_in_company,
    tiny_engine,
)
from tests.golden.fed import tiny_path
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import CanvasSnapshot, FinishReason, LaidOut
from vdiff_grpc.engine.lengths import LengthSearch
from vdiff_grpc.engine.strategies import (
    ConfidenceThreshold,
    DreamSchedule,
    FixedSchedule,
    FreeDave,
    Klass,
    Remdm,
    Strategy,
    Wino,
)
from vdiff_grpc.engine.types import (
    Granularity,
    Hole,
    InfillPrompt,
    Request,
    RequestParams,
    TokensPrompt,
)
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import InvalidRequestError

Segment = str | tuple[int, ...] | Hole

OPEN: tuple[Segment, ...] = ((5, 6, 7), Hole(0, 2, 9), (8, 9), Hole(3), (10,), Hole(0, None, 6), (11,))


def request(segments: tuple[Segment, ...], **params: Any) -> Request:
    return Request(InfillPrompt(segments), RequestParams(**{"seed": 3} | params))


def fixed(segments: tuple[Segment, ...], lengths: tuple[int, ...]) -> tuple[Segment, ...]:
    """The template with holes of these lengths."""
    left = iter(lengths)
    return tuple(Hole(next(left)) if isinstance(s, Hole) else s for s in segments)


def lengths_of(events: list[Any]) -> tuple[int, ...]:
    assert isinstance(events[0], LaidOut)
    return events[0].hole_lengths
