"""A request that has not ended: its rows, and what its caller is told of them. Knows no steps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from vdiff_grpc.engine.events import Event, Output
from vdiff_grpc.engine.likelihood import score_of
from vdiff_grpc.engine.messages import Spent
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.told import Told, snapshot
from vdiff_grpc.engine.types import Granularity, ResolvedRequest


@dataclass(slots=True)
class OpenRequest:
    """Its rows may finish at different steps.

    told: by output. is_watched: its phases are wanted.
    """

    request: ResolvedRequest
    sequences: list[Sequence]
    told: dict[int, Told]
    deadline_ns: int | None
    is_watched: bool
    started_ns: int = 0
    has_stepped: bool = False
    num_done: int = 0

    def spent(self, key: int) -> Spent:
        """The work that was done for it so far."""
        filled = sum(int((row.state == State.COMMITTED).sum()) for row in self.sequences)
        return Spent(key, filled, sum(row.forward_passes for row in self.sequences))

    def chosen(self) -> tuple[tuple[Output, ...], tuple[Output, ...]]:
        """The n outputs, with best_of by falling score, and the candidates that are none of them."""
        params = self.request.params
        outputs = []
        for row in self.sequences:
            trajectory = tuple(self.told[row.index].trajectory)
            output = dataclasses.replace(row.output(), score=score_of(row), trajectory=trajectory)
            outputs.append(output)
        if params.best_of is not None:  # ties: the first of the candidates
            outputs.sort(key=lambda o: -math.inf if o.score is None else o.score, reverse=True)
        placed = [dataclasses.replace(output, index=i) for i, output in enumerate(outputs)]
        others = [dataclasses.replace(output, trajectory=()) for output in placed[params.n :]]
        return tuple(placed[: params.n]), tuple(others)

    def tell(self, row: Sequence) -> list[Event]:
        """The events of one logical step, by what the request wants to hear."""
        request, events = self.request, list[Event]()
        if request.return_trajectory:
            self.told[row.index].note(row)
        due = (row.step + 1) % request.stride == 0 or row.finished
        if due and request.granularity is Granularity.STEPS:
            events += self.told[row.index].updates(row)
        elif due and request.granularity is Granularity.SNAPSHOTS:
            events.append(snapshot(row))
        new = row.text.take_new()
        return events + list(new) if request.granularity is not Granularity.NONE else events

    def tell_rest(self, row: Sequence) -> list[Event]:
        """What a stride has kept back so far, and the text."""
        request, events = self.request, list[Event]()
        step = max(0, row.step - 1)
        if request.stride > 1 and row.step % request.stride:
            if request.granularity is Granularity.STEPS:
                updates = self.told[row.index].updates(row)
                events += [dataclasses.replace(update, step=step) for update in updates]
            elif request.granularity is Granularity.SNAPSHOTS:
                events.append(dataclasses.replace(snapshot(row), step=step))
        new = row.text.take_new()
        return events + list(new) if request.granularity is not Granularity.NONE else events
