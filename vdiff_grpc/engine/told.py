"""What a caller has been told of one output's canvas, so that the rest can be."""

from __future__ import annotations

import numpy as np

from vdiff_grpc.engine.columns import Bools
from vdiff_grpc.engine.events import CanvasSnapshot, StepUpdate, UpdateKind
from vdiff_grpc.engine.sequence import Sequence, State


class Told:
    """The canvas as the caller knows it. Applying every update gives the row's own."""

    def __init__(self, row: Sequence) -> None:
        self._ids = row.ids.copy()
        self._filled = row.state == State.COMMITTED
        self._num_hurried = row.num_hurried
        self.trajectory: list[StepUpdate] = []

    def note(self, row: Sequence) -> None:
        """Keeps the changes since the last call, to be told in one piece."""
        self.trajectory += self.updates(row)

    def updates(self, row: Sequence) -> list[StepUpdate]:
        """All changes since the last call, one update for each kind that occurred."""
        filled = row.state == State.COMMITTED
        changed = row.ids != self._ids
        found = (
            (UpdateKind.UNMASK, filled & ~self._filled),
            (UpdateKind.REVISE, filled & self._filled & changed),
            (UpdateKind.REMASK, ~filled & self._filled),
        )
        hurried = row.num_hurried > self._num_hurried
        self._ids, self._filled, self._num_hurried = row.ids.copy(), filled, row.num_hurried
        updates = [_update(row, kind, where, hurried) for kind, where in found if where.any()]
        return updates or [_update(row, UpdateKind.UNMASK, np.zeros_like(filled))]


def snapshot(row: Sequence) -> CanvasSnapshot:
    return CanvasSnapshot(
        output_index=row.index,
        step=row.step,
        block=row.block,
        forward_passes=row.forward_passes,
        token_ids=tuple(row.ids.tolist()),
        confidences=tuple(row.confidences.tolist()),
    )


def _update(row: Sequence, kind: UpdateKind, where: Bools, hurried: bool = False) -> StepUpdate:
    positions = np.flatnonzero(where)
    token_ids = row.ids[positions].tolist()
    texts = [""] * len(token_ids)
    if row.tokenizer is not None and kind is not UpdateKind.REMASK:
        texts = [row.tokenizer.token_text(token) for token in token_ids]
    return StepUpdate(
        output_index=row.index,
        step=row.step,
        block=row.block,
        forward_passes=row.forward_passes,
        kind=kind,
        positions=tuple(positions.tolist()),
        token_ids=tuple(token_ids),
        confidences=tuple(row.confidences[positions].tolist()),
        texts=tuple(texts),
        hurried=hurried and kind is UpdateKind.UNMASK,
    )
