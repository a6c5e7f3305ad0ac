"""Rows of a step packed side by side: what the model is given. Host side only.

A row's logits must not depend on its company, to the last bit: packed tokens and head rows are
filled up to whole rows (exact.py). On a GPU the kernel that is chosen depends on the shape in other
ways: there a fill to one constant shape keeps the promise.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.columns import Ints, Status, Variant
from vdiff_grpc.engine.exact import ROWS, whole_rows
from vdiff_grpc.engine.kernels.segments import SDPA
from vdiff_grpc.engine.rng import NoiseRows
from vdiff_grpc.engine.sequence import Sequence

FILLER_LENGTH = 128  # of a segment of filler: attention to it stays cheap


@dataclass(frozen=True, slots=True)
class Fill:
    """Shape that packed rows are filled up to.

    filler_length: of a segment of filler, at most the model's positions.
    merge, backends: as in Segments.
    """

    min_tokens: int = ROWS
    min_head: int = ROWS
    filler_length: int = FILLER_LENGTH
    merge: bool = True
    backends: tuple[str, ...] = (SDPA,)

    def tokens(self, count: int) -> int:
        """Tokens of a step that needs `count`."""
        return max(self.min_tokens, whole_rows(count))

    def head(self, count: int) -> int:
        """Head rows of a step that needs `count`."""
        return max(self.min_head, whole_rows(count))


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Segments side by side.

    token_ids, position_ids: [num_tokens].
    head: [num_head] indices into the packed tokens whose logits are wanted: the segments' own in
    their order, then filler.
    """

    token_ids: Ints
    position_ids: Ints
    layout: AttentionLayout
    head: Ints


def pack_variants(variants: Rows[Variant], filler_id: int, fill: Fill) -> PackedTokens:
    """Segments in this order, filled up with tokens that nobody sees."""
    tokens = [v.token_ids for v in variants]
    positions = [v.position_ids for v in variants]
    begins = np.cumsum([0, *map(len, tokens)])
    heads = [begin + v.heads for begin, v in zip(begins, variants, strict=False)]
    count = int(begins[-1])
    missing = fill.tokens(count) - count
    while missing > 0:
        length = min(missing, fill.filler_length)
        tokens.append(np.full(length, filler_id, dtype=np.int64))
        positions.append(np.arange(length, dtype=np.int64))
        missing -= length
    num_filler = len(tokens) - len(variants)
    head = np.concatenate(heads)
    head = np.pad(head, (0, fill.head(len(head)) - len(head)))
    return PackedTokens(
        np.concatenate(tokens),
        np.concatenate(positions),
        AttentionLayout.of_lengths(
            [len(t) for t in tokens],
            [v.rule for v in variants] + [FULL] * num_filler,
            [v.cache for v in variants] + [None] * num_filler,
            merge=fill.merge,
            backends=fill.backends,
        ),
        head,
    )


@dataclass(frozen=True, slots=True)
class PackedStep:
    """All rows of one step.

    variants: of each row, in order; then the unconditional twins of guided rows.
    tokens.head: one for each candidate, then for each guided one its unconditional twin's, then
    filler. rows, positions, numbers, steps, status, current: [num_candidates] index into
    `sequences`, canvas position, number of the variant in its row's plan, step that addresses
    the noise, Status, and the token that the canvas has now.
    guided: candidates with guidance, in the order of their twins.
    """

    sequences: tuple[Sequence, ...]
    variants: tuple[Variant, ...]
    tokens: PackedTokens
    rows: Ints
    positions: Ints
    numbers: Ints
    steps: Ints
    status: Ints
    current: Ints
    guided: Ints
    forwards: tuple[int, ...]

    @property
    def num_candidates(self) -> int:
        return len(self.rows)

    def of_candidates(self, values: list[float] | list[int]) -> npt.NDArray[np.float64]:
        """A value per row, repeated for each of its candidates."""
        return np.asarray(values, dtype=np.float64)[self.rows]

    def noise_rows(self, candidates: Ints) -> NoiseRows:
        """Addresses of the noise of some candidates."""
        seeds = np.array([s.seed for s in self.sequences], dtype=np.uint64)
        return NoiseRows(
            seeds[self.rows[candidates]], self.steps[candidates], self.positions[candidates]
        )

    def without_end(self) -> Ints:
        """Candidates that may not be an end token."""
        if not any(sequence.bans_end.any() for sequence in self.sequences):
            return np.zeros(0, dtype=np.int64)
        banned = np.zeros(len(self.rows), dtype=np.bool_)
        for row, sequence in enumerate(self.sequences):
            mine = self.rows == row
            banned[mine] = sequence.bans_end[self.positions[mine]]
        return np.flatnonzero(banned)


def pack(
    sequences: Rows[Sequence],
    plans: Rows[Rows[Variant]],
    filler_id: int,
    fill: Fill | None = None,
) -> PackedStep:
    """Packs one step of every sequence, given what each computes."""
    twins: list[Variant] = []
    columns: list[list[Ints]] = []
    guided: list[Ints] = []
    num_candidates = 0
    for row, (sequence, plan) in enumerate(zip(sequences, plans, strict=True)):
        for number, variant in enumerate(plan):
            count = len(variant.positions)
            columns.append(
                [
                    np.full(count, row),
                    variant.positions,
                    np.full(count, number),
                    np.full(count, variant.noise_step),
                    _status(sequence, variant),
                    sequence.ids[variant.positions],
                ]
            )
            if sequence.is_guided:
                twins.append(sequence.blind(variant))
                guided.append(np.arange(num_candidates, num_candidates + count))
            num_candidates += count
    variants = [variant for plan in plans for variant in plan] + twins
    joined = [np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)]
    rows, positions, numbers, steps, status, current = joined
    return PackedStep(
        sequences=tuple(sequences),
        variants=tuple(variants),
        tokens=pack_variants(variants, filler_id, fill or Fill()),
        rows=rows,
        positions=positions,
        numbers=numbers,
        steps=steps,
        status=status,
        current=current,
        guided=np.concatenate(guided) if guided else np.zeros(0, dtype=np.int64),
        forwards=tuple(
            sum(variant.forwards for variant in plan) * (2 if sequence.is_guided else 1)
            for sequence, plan in zip(sequences, plans, strict=True)
        ),
    )


def _status(sequence: Sequence, variant: Variant) -> Ints:
    """A position that only a variant of the canvas fills is still masked."""
    masked = np.isin(variant.positions, sequence.masked_in_block())
    committed = np.isin(variant.positions, sequence.committed_in_block())
    return np.select([masked, committed], [Status.MASKED, Status.COMMITTED], Status.AHEAD)
