"""Rows of a step packed side by side: what the model is given. Host side only.

Matrix products of few rows differ in the last bit from those of many (1, 2, 3 and 7 rows from
1,024, measured in float32 on CPU; 16 and more did not). So that a row's logits are the same in
any company, packed tokens and head rows are filled up to at least 16. On a GPU the kernel that
is chosen depends on the shape in other ways: there a fill to one constant shape keeps the promise.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.attention import AttentionLayout, MaskRule
from vdiff_grpc.engine.rng import NoiseRows
from vdiff_grpc.engine.sequence import Floats, Ints, Sequence

MIN_ROWS = 16
_FILLER_LENGTH = 128  # of a segment of filler: attention to it stays cheap


@dataclass(frozen=True, slots=True)
class PackedStep:
    """All rows of one step.

    token_ids, position_ids: [num_tokens].
    head: [num_head] indices into the packed tokens whose logits are wanted: first one for each
    candidate, sorted by row and position; then the unconditional ones of guided candidates;
    then filler.
    rows, positions: [num_candidates] index into `sequences`, canvas position.
    guided: candidates with guidance, in the order of their unconditional head rows.
    """

    sequences: tuple[Sequence, ...]
    token_ids: Ints
    position_ids: Ints
    layout: AttentionLayout
    head: Ints
    rows: Ints
    positions: Ints
    guided: Ints

    @property
    def num_candidates(self) -> int:
        return len(self.rows)

    def of_candidates(self, values: list[float] | list[int]) -> npt.NDArray[np.float64]:
        """A value per row, repeated for each of its candidates."""
        return np.asarray(values, dtype=np.float64)[self.rows]

    def noise_rows(self, candidates: Ints) -> NoiseRows:
        """Addresses of the noise of some candidates."""
        seeds = np.array([s.seed for s in self.sequences], dtype=np.uint64)
        steps = np.array([s.step for s in self.sequences], dtype=np.int64)
        rows = self.rows[candidates]
        return NoiseRows(seeds[rows], steps[rows], self.positions[candidates])

    def without_end(self) -> Ints:
        """Candidates that may not be an end token."""
        if not any(sequence.bans_end.any() for sequence in self.sequences):
            return np.zeros(0, dtype=np.int64)
        banned = np.zeros(len(self.rows), dtype=np.bool_)
        for row, sequence in enumerate(self.sequences):
            mine = self.rows == row
            banned[mine] = sequence.bans_end[self.positions[mine]]
        return np.flatnonzero(banned)


@dataclass(frozen=True, slots=True)
class Fill:
    """Shape that packed rows are filled up to. merge: as in AttentionLayout."""

    min_tokens: int = MIN_ROWS
    min_head: int = MIN_ROWS
    merge: bool = True


def pack(
    sequences: Rows[Sequence], shift: int, filler_id: int, fill: Fill | None = None
) -> PackedStep:
    """Packs one step of every sequence.

    shift: the model's logits of position p predict position p + shift.
    """
    fill = fill or Fill()
    tokens: list[Ints] = []
    position_ids: list[Ints] = []
    rules: list[MaskRule] = []
    heads: list[Ints] = []
    blind_heads: list[Ints] = []
    rows: list[Ints] = []
    positions: list[Ints] = []
    guided: list[Ints] = []
    begin = num_candidates = 0
    for row, sequence in enumerate(sequences):
        for number, variant in enumerate(sequence.plan().variants):
            tokens.append(variant.token_ids)
            position_ids.append(variant.position_ids)
            rules.append(variant.rule)
            head = begin + np.maximum(variant.wanted - shift, 0)
            if number == 0:
                heads.append(head)
                rows.append(np.full(len(head), row, dtype=np.int64))
                positions.append(variant.wanted)
                num_candidates += len(head)
            else:
                blind_heads.append(head)
                guided.append(np.arange(num_candidates - len(head), num_candidates))
            begin += len(variant.token_ids)
    while begin < fill.min_tokens:
        length = min(fill.min_tokens - begin, _FILLER_LENGTH)
        tokens.append(np.full(length, filler_id, dtype=np.int64))
        position_ids.append(np.arange(length, dtype=np.int64))
        rules.append(MaskRule.FULL)
        begin += length
    head = np.concatenate([*heads, *blind_heads])
    if len(head) < fill.min_head:
        head = np.concatenate([head, np.zeros(fill.min_head - len(head), dtype=np.int64)])
    return PackedStep(
        sequences=tuple(sequences),
        token_ids=np.concatenate(tokens),
        position_ids=np.concatenate(position_ids),
        layout=AttentionLayout.of_lengths([len(t) for t in tokens], rules, merge=fill.merge),
        head=head,
        rows=np.concatenate(rows),
        positions=np.concatenate(positions),
        guided=np.concatenate(guided) if guided else np.zeros(0, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class RowCommits:
    """What one row commits in this step: columns, positions ascending."""

    sequence: Sequence
    positions: Ints
    token_ids: Ints
    confidences: Floats
