"""Rows of a step packed side by side: what the model is given. Host side only.

A row's logits must not depend on its company, to the last bit: packed tokens and head rows are
filled up to whole rows (exact.py). On a GPU the kernel that is chosen depends on the shape in other
ways: there a fill to one constant shape keeps the promise.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.columns import Bools, Ints, Status, Variant
from vdiff_grpc.engine.exact import ROWS, whole_rows
from vdiff_grpc.engine.kernels.segments import SDPA
from vdiff_grpc.engine.rng import NoiseRows
from vdiff_grpc.engine.sequence import Sequence, State

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
            [None if v.kept is None else v.kept.window() for v in variants] + [None] * num_filler,
            merge=fill.merge,
            backends=fill.backends,
        ),
        head,
    )


@dataclass(frozen=True, slots=True)
class PackedStep:
    """All rows of one step.

    variants: of each row, in order; then the unconditional twins of guided rows; then `pages`.
    tokens.head: one for each candidate, then for each guided one its unconditional twin's, then
    filler. rows, positions, numbers, steps, status, current: [num_candidates] index into
    `sequences`, canvas position, number of the variant in its row's plan, step that addresses
    the noise, Status, and the token that the canvas has now.
    guided: candidates with guidance, in the order of their twins.
    forwards, computed: of each sequence, its passes and their tokens.
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
    computed: tuple[int, ...]

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
        banning = [row for row, s in enumerate(self.sequences) if s.bans_any_end]
        banned = np.zeros(len(self.rows), dtype=np.bool_)
        bounds = self.bounds().tolist()
        for row in banning:
            mine = slice(bounds[row], bounds[row + 1])
            banned[mine] = self.sequences[row].bans_end[self.positions[mine]]
        return np.flatnonzero(banned)

    def bounds(self) -> Ints:
        """[num_sequences + 1] where each one's candidates begin, and the last one's end."""
        return np.searchsorted(self.rows, np.arange(len(self.sequences) + 1))


def pack(
    sequences: Rows[Sequence],
    plans: Rows[Rows[Variant]],
    filler_id: int,
    fill: Fill | None = None,
    pages: Rows[Variant] = (),
) -> PackedStep:
    """Packs one step of every sequence, given what each computes. pages: that nothing is asked of."""
    twins: list[Variant] = []
    current: list[Ints] = []
    states: list[npt.NDArray[np.uint8]] = []
    lines: list[tuple[int, int, int, int, int]] = []  # of each variant
    counts: list[int] = []
    guided: list[Ints] = []
    num_candidates = 0
    for row, (sequence, plan) in enumerate(zip(sequences, plans, strict=True)):
        block = sequence.block_positions()
        first, last = int(block[0]), int(block[-1])
        for number, variant in enumerate(plan):
            positions = variant.positions
            current.append(sequence.ids[positions])
            states.append(sequence.state[positions])
            lines.append((row, number, variant.noise_step, first, last))
            counts.append(len(positions))
            if sequence.is_guided:
                twins.append(sequence.blind(variant))
                guided.append(np.arange(num_candidates, num_candidates + len(positions)))
            num_candidates += len(positions)
    variants = [variant for plan in plans for variant in plan] + twins + list(pages)
    columns = np.array(lines, dtype=np.int64).reshape(-1, 5).T
    rows, numbers, steps, firsts, lasts = np.repeat(columns, np.array(counts, np.int64), axis=1)
    positions = _joined([variant.positions for plan in plans for variant in plan])
    in_block = (firsts <= positions) & (positions <= lasts)
    return PackedStep(
        sequences=tuple(sequences),
        variants=tuple(variants),
        tokens=pack_variants(variants, filler_id, fill or Fill()),
        rows=rows,
        positions=positions,
        numbers=numbers,
        steps=steps,
        status=_status(_joined(states), in_block),
        current=_joined(current),
        guided=_joined(guided),
        forwards=tuple(
            sum(variant.forwards for variant in plan) * sequence.num_streams
            for sequence, plan in zip(sequences, plans, strict=True)
        ),
        computed=tuple(
            sum(len(variant.token_ids) for variant in plan) * sequence.num_streams
            for sequence, plan in zip(sequences, plans, strict=True)
        ),
    )


def _status(states: npt.NDArray[np.uint8], in_block: Bools) -> Ints:
    """Of Status. A position that only a variant of the canvas fills is still masked."""
    status = np.full(len(states), int(Status.AHEAD), dtype=np.int64)
    status[in_block & (states == int(State.MASKED))] = int(Status.MASKED)
    status[in_block & (states == int(State.COMMITTED))] = int(Status.COMMITTED)
    return status


def _joined(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One after the other; of whole numbers where there is none."""
    return np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
