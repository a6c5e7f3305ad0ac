"""A row whose holes grow and shrink while they are filled, by the tokens of a DreamOn checkpoint.

On the canvas a hole has its longest length from the start, so that no position outside it ever
moves. What is beyond its length now is absent: masked for whoever looks, and not computed; the
network sees the canvas without it. Where the model fills in the expand token a position becomes
two masks, where it fills in the delete token the position goes away, and what follows in the hole
moves. What is filled from a hole's beginning without a gap can no longer move.

Source: arXiv:2602.01326; the published checkpoint's sampler as kept in dhruvdcoder/xlm-core
xlm-models/dreamon/generation_dreamon.py d1a6e46 (DreamOnGenerationMixin._sample), which agrees
with DreamLM/DreamOn eval/generator.py 8a0a549 (batch_generate_with_expand_as_token). There one
hole is filled, the shortest length is 0, and several expand tokens of one step may push the end of
the document off the canvas; here what exceeds a limit stays masked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vdiff_grpc.engine.columns import Bools, Columns, Ints, Variant
from vdiff_grpc.engine.growth_checks import EXPANSIONS
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import GrowthTokens, ModelInfo, ResolvedRequest, SpanKind

if TYPE_CHECKING:
    from vdiff_grpc.engine.packing import PackedStep

START = 4  # positions of a hole at first, as far as its range allows

_NEW = -1  # stands for a mask among the positions that a hole's contents come from


def row_of(
    key: int,
    request: ResolvedRequest,
    index: int,
    info: ModelInfo,
    tokenizer: Tokenizer | None,
    leader: Sequence | None = None,
) -> Sequence:
    """The row of one output."""
    kind = GrowingSequence if request.growing else Sequence
    return kind(key, request, index, info, tokenizer, leader)


@dataclass(slots=True)
class _Hole:
    """begin: on the canvas. budget: expand tokens that may still come."""

    begin: int
    least: int
    most: int
    length: int = field(init=False)
    budget: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = min(max(START, self.least), self.most)
        self.budget = EXPANSIONS * self.most

    @property
    def place(self) -> slice:
        """Of its positions as they are now."""
        return slice(self.begin, self.begin + self.length)

    @property
    def room(self) -> int:
        """Positions that may still be added."""
        return min(self.most - self.length, self.budget)

    @property
    def is_open(self) -> bool:
        """Whether its length is left to the model."""
        return self.least < self.most


class GrowingSequence(Sequence):
    """A row with growing holes; they are one block.

    present: canvas positions that are there, ascending. grows: canvas positions of holes whose
    length is left to the model.
    """

    def lay_out(self, request: ResolvedRequest) -> None:
        super().lay_out(request)
        assert self.info.growth is not None, "validation asks for the tokens"
        self._tokens: GrowthTokens = self.info.growth
        ends = np.cumsum([span.length for span in request.spans]).tolist()
        begins = [
            end - span.length
            for end, span in zip(ends, request.spans, strict=True)
            if span.kind is SpanKind.HOLE
        ]
        holes = zip(begins, request.growing, strict=True)
        self._holes = [_Hole(begin, *limits) for begin, limits in holes]
        self.grows = np.zeros(len(self.ids), dtype=np.bool_)
        for hole in self._holes:
            self.state[hole.begin + hole.length : hole.begin + hole.most] = State.ABSENT
            self.grows[hole.begin : hole.begin + hole.most] = hole.is_open
        self._renew()
        self._enter_block(0)

    def scheduled_commits(self, ahead: int = 0) -> int:
        """One position a step, as in the reference: how many steps there will be nobody knows."""
        return 1

    def compacted(self, variant: Variant) -> Variant:
        """The same without what is absent; until then its tokens are numbered as on the canvas."""
        there = self.state[variant.position_ids] != State.ABSENT
        places = np.searchsorted(self.present, variant.positions)
        return dataclasses.replace(
            variant,
            token_ids=variant.token_ids[there],
            position_ids=np.arange(int(there.sum())),
            heads=np.maximum(places - self.shift, 0),
        )

    def blind(self, variant: Variant) -> Variant:
        given = self.state[self.present[: len(variant.token_ids)]] <= State.FROZEN
        ids = np.where(given, self.mask_token_id, variant.token_ids)
        return variant.replaced(ids, None)

    def apply(self, changes: Columns) -> Columns:
        grows = self.grows[changes.positions]
        deleted = grows & (changes.token_ids == self._tokens.delete)
        expanded = grows & (changes.token_ids == self._tokens.expand)
        filled = super().apply(changes.take(~(deleted | expanded)))
        if deleted.any() or expanded.any():
            for hole in self._holes:
                place = hole.place
                mine = (place.start <= changes.positions) & (changes.positions < place.stop)
                self._move(
                    hole, changes.positions[mine & deleted], changes.positions[mine & expanded]
                )
            self._renew()
        return filled

    def settle(self, *, block_done: bool) -> None:
        text = self.text
        if not self.finished and text.num_pushed == text.hole_ends[len(text.hole_texts)]:
            text.end_hole()  # its last mask has been deleted
        super().settle(block_done=block_done)

    def bans(self, positions: Ints) -> tuple[Bools, Bools]:
        """Of growing positions: where expand must not be drawn, and where delete must not."""
        no_room, shortest = np.zeros_like(self.grows), np.zeros_like(self.grows)
        for hole in self._holes:
            no_room[hole.place] = hole.room == 0
            shortest[hole.place] = hole.length == hole.least
        return no_room[positions], shortest[positions]

    def _move(self, hole: _Hole, deleted: Ints, expanded: Ints) -> None:
        """What exceeds a limit stays masked; the lower positions come first."""
        gone = set(deleted[: hole.length - hole.least].tolist())
        hole.length -= len(gone)
        twice = set(expanded[: hole.room].tolist())
        before = range(hole.begin, hole.begin + hole.length + len(gone))
        sources: list[int] = []
        for position in before:
            if position in twice:
                sources += [_NEW, _NEW]
            elif position not in gone:
                sources.append(position)
        hole.length += len(twice)
        hole.budget -= len(twice)
        whole = slice(hole.begin, hole.begin + hole.most)
        taken = np.array(sources)
        kept, new = np.maximum(taken, 0), taken == _NEW
        for column, empty in (
            (self.ids, self.mask_token_id),
            (self.state, State.MASKED),
            (self.confidences, 0),
            (self.commit_steps, 0),
        ):
            moved = np.where(new, empty, column[kept])
            column[whole] = empty
            column[hole.place] = moved
        self.state[hole.begin + hole.length : whole.stop] = State.ABSENT
        tops = {
            hole.begin + place: self.top_tokens[source]
            for place, source in enumerate(sources)
            if source in self.top_tokens
        }
        for position in before:
            self.top_tokens.pop(position, None)
        self.top_tokens |= tops

    def _renew(self) -> None:
        """What follows from the holes' lengths."""
        self.present: Ints = np.flatnonzero(self.state != State.ABSENT)
        self.generated = self.present[self.state[self.present] >= State.MASKED]
        self.blocks = [slice(0, len(self.generated))]
        self.text.hole_ends = np.cumsum([hole.length for hole in self._holes]).tolist()
        self._masked = None


def bans(packed: PackedStep, info: ModelInfo) -> tuple[Ints, Ints]:
    """Candidates that may not be the expand token, and those that may not be the delete token.

    Outside growing holes the one means nothing, and the other ends a text or nothing.
    """
    assert info.growth is not None
    no_expand = np.ones(packed.num_candidates, dtype=np.bool_)
    no_delete = np.full(packed.num_candidates, info.growth.delete not in info.end_token_ids)
    no_delete[packed.without_end()] = True
    bounds = packed.bounds().tolist()
    for number, row in enumerate(packed.sequences):
        if isinstance(row, GrowingSequence):
            lines = np.arange(bounds[number], bounds[number + 1])
            lines = lines[row.grows[packed.positions[lines]]]
            no_expand[lines], no_delete[lines] = row.bans(packed.positions[lines])
    return np.flatnonzero(no_expand), np.flatnonzero(no_delete)
