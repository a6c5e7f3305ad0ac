"""The reader's side of a stream: applies events and holds every output's canvas. Knows no channel.

What one holds after the last event equals the server's final canvas, whatever mix of
StepUpdate, CanvasSnapshot and Committed came.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Any

from vdiff_grpc import v1

# The id of a given position that the stream does not tell (granularity COMMITTED).
UNKNOWN_ID = -1


@dataclass(slots=True)
class OutputCanvas:
    """One output's canvas; the lists have one entry per position.

    token_ids: the mask token's id where nothing is yet.
    confidences: 0 for given and masked positions.
    texts: for display; None where it is masked or not known. Until a token is committed
        (a given one always), its own text alone, with broken UTF-8 replaced.
    masked: whether the position is still open.
    step: the last denoising step, from 0; -1 before the first.
    fresh: the positions that the last event changed.
    num_hurried: the steps that have filled more than the strategy would have, for the sake of a
        latency budget; those that a slow reader has missed are not among them.
    text: the committed text so far; hole_texts the same by hole.
    """

    index: int
    token_ids: list[int]
    confidences: list[float]
    texts: list[str | None]
    masked: list[bool]
    step: int = -1
    block: int = 0
    forward_passes: int = 0
    fresh: tuple[int, ...] = ()
    num_hurried: int = 0
    text: str = ""
    hole_texts: list[str] = field(default_factory=list)
    end: v1.OutputEnd | None = None

    @property
    def num_masked(self) -> int:
        return sum(self.masked)


class Canvas:
    """All outputs of one stream. `apply` each event in its order.

    started, finished: those events, once they came.
    spans: (kind, first position, end) of the layout's spans.
    """

    def __init__(self) -> None:
        self.started: v1.Started | None = None
        self.finished: v1.Finished | None = None
        self.spans: list[tuple[v1.SpanKind, int, int]] = []
        self.outputs: list[OutputCanvas] = []
        # A server of before CanvasSnapshot.texts: what other events said about an id is kept.
        self._texts: dict[int, str] = {}

    @property
    def holes(self) -> list[range]:
        """The positions of each hole."""
        return [range(a, b) for kind, a, b in self.spans if kind == v1.SPAN_KIND_HOLE]

    @property
    def to_fill(self) -> list[range]:
        """The positions that are filled: the holes, and what a last block has beyond them."""
        kinds = (v1.SPAN_KIND_HOLE, v1.SPAN_KIND_SURPLUS)
        return [range(a, b) for kind, a, b in self.spans if kind in kinds]

    @property
    def is_infill(self) -> bool:
        """Whether what is filled is in places, and not just what follows the prompt."""
        return len(self.holes) > 1 or any(kind == v1.SPAN_KIND_FROZEN for kind, _, _ in self.spans)

    @property
    def grows(self) -> bool:
        """Whether open holes get their length while they are filled; what is left open is none of theirs."""
        resolved = self.started.resolved if self.started else v1.ResolvedParams()
        return resolved.diffusion.hole_lengths == v1.HOLE_LENGTHS_NATIVE

    @property
    def num_positions(self) -> int:
        """Positions to fill, of one output."""
        return sum(map(len, self.to_fill))

    def apply(self, event: v1.StreamGenerateResponse) -> OutputCanvas | None:
        """Takes one event in. Returns the output it changed, None for Started and Finished."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self._start(event.started)
            return None
        if self.started is None:
            raise ValueError(f"{kind or 'an empty event'} came before started")
        if kind == "finished":
            self.finished = event.finished
            for end in event.finished.ends:
                self.outputs[end.index].end = end
            return None
        # An event of a later contract changes no canvas that this client knows.
        if kind not in ("step_update", "snapshot", "committed"):
            return None
        body: Any = getattr(event, kind)
        output: OutputCanvas = self.outputs[body.output_index]
        if kind == "step_update":
            self._update(output, body)
        elif kind == "snapshot":
            self._replace(output, body)
        else:
            self._commit(output, body)
        return output

    def _start(self, started: v1.Started) -> None:
        self.started = started
        position = 0
        for span in started.layout.spans:
            self.spans.append((span.kind, position, position + span.length))
            position += span.length
        masked = [False] * position
        for positions in self.to_fill:
            masked[positions.start : positions.stop] = [True] * len(positions)
        mask_id = started.layout.mask_token_id
        token_ids = list(started.layout.token_ids) or [
            mask_id if is_masked else UNKNOWN_ID for is_masked in masked
        ]
        texts = started.layout.texts
        self.outputs = [
            OutputCanvas(
                index=index,
                token_ids=token_ids.copy(),
                confidences=[0.0] * position,
                texts=[
                    texts[i] if texts and not is_masked else None
                    for i, is_masked in enumerate(masked)
                ],
                masked=masked.copy(),
                hole_texts=[""] * len(self.holes),
            )
            for index in range(max(1, started.resolved.sampling.n))
        ]

    def _update(self, output: OutputCanvas, update: v1.StepUpdate) -> None:
        remasked = update.kind == v1.UPDATE_KIND_REMASK
        columns = zip(update.positions, update.token_ids, strict=True)
        for i, (position, token_id) in enumerate(columns):
            output.token_ids[position] = token_id
            output.masked[position] = remasked
            output.confidences[position] = 0.0 if remasked else update.confidences[i]
            output.texts[position] = None if remasked else update.texts[i]
            if not remasked:
                self._texts[token_id] = update.texts[i]
        output.step, output.block = update.step, update.block
        output.forward_passes = update.forward_passes
        output.fresh = tuple(update.positions)
        output.num_hurried += update.hurried

    def _replace(self, output: OutputCanvas, snapshot: v1.CanvasSnapshot) -> None:
        assert self.started is not None
        mask_id = self.started.layout.mask_token_id
        fresh = []
        for positions in self.to_fill:
            for position in positions:
                token_id = snapshot.token_ids[position]
                masked = token_id == mask_id
                if token_id != output.token_ids[position]:
                    fresh.append(position)
                    text = snapshot.texts[position] if snapshot.texts else self._texts.get(token_id)
                    output.texts[position] = None if masked else text
                output.masked[position] = masked
        output.token_ids = list(snapshot.token_ids)
        output.confidences = list(snapshot.confidences)
        output.step, output.block = snapshot.step, snapshot.block
        output.forward_passes = snapshot.forward_passes
        output.fresh = tuple(fresh)

    def _commit(self, output: OutputCanvas, committed: v1.Committed) -> None:
        output.text += committed.text
        output.hole_texts[committed.hole_index] += committed.text
        tokens = committed.tokens
        # A character whose bytes are several tokens' is shown with the last of them.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i, position in enumerate(tokens.positions):
            token_id = tokens.ids[i]
            output.token_ids[position] = token_id
            output.masked[position] = False
            output.confidences[position] = tokens.confidences[i]
            output.texts[position] = decoder.decode(tokens.token_bytes[i])
            self._texts.setdefault(token_id, tokens.token_bytes[i].decode(errors="replace"))
