"""Requests that have not ended: their rows, what was told of them, and which answers are chosen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from vdiff_grpc.engine.events import Output
from vdiff_grpc.engine.likelihood import score_of
from vdiff_grpc.engine.messages import Spent
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.told import Told
from vdiff_grpc.engine.types import ResolvedRequest


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended. Its rows may finish at different steps.

    num_done: rows that have, their scores included.
    """

    request: ResolvedRequest
    sequences: list[Sequence]
    told: dict[int, Told]
    deadline_ns: int | None
    is_watched: bool
    started_ns: int = 0
    has_stepped: bool = False
    num_done: int = 0


def spent_on(key: int, opened: OpenRequest) -> Spent:
    filled = sum(int((row.state == State.COMMITTED).sum()) for row in opened.sequences)
    return Spent(key, filled, sum(row.forward_passes for row in opened.sequences))


def chosen(opened: OpenRequest) -> tuple[tuple[Output, ...], tuple[Output, ...]]:
    """The n outputs, with best_of by falling score, and the candidates that are none of them."""
    params = opened.request.params
    outputs = []
    for row in opened.sequences:
        trajectory = tuple(opened.told[row.index].trajectory)
        output = dataclasses.replace(row.output(), score=score_of(row), trajectory=trajectory)
        outputs.append(output)
    if params.best_of is not None:  # ties: the first of the candidates
        outputs.sort(key=lambda o: -math.inf if o.score is None else o.score, reverse=True)
    placed = [dataclasses.replace(output, index=i) for i, output in enumerate(outputs)]
    others = [dataclasses.replace(output, trajectory=()) for output in placed[params.n :]]
    return tuple(placed[: params.n]), tuple(others)
