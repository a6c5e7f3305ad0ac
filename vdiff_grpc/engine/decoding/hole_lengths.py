"""Looks at candidates for the length of a hole, each a canvas of its own; fills nothing.

Which candidates, and what follows from their scores: engine/lengths.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.columns import Columns, Variant
from vdiff_grpc.engine.decoding.rule import Candidates, Group, Rule
from vdiff_grpc.engine.lengths import HoleLengths, LengthSearch, canvas_of
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.types import SpanKind


class HoleLengthsRule(Rule):
    """The confidences of the hole that is being chosen, in each candidate."""

    name = HoleLengths.NAME

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        search = _search_of(row)
        return tuple(_candidate(row, search, lengths) for lengths in search.batch())

    def temperature(self, row: Sequence) -> float:
        return 0.0  # the most likely tokens

    def select(self, group: Group, candidates: Candidates) -> Tensor:
        return torch.zeros_like(candidates.token_ids)  # KEEP

    def settle(self, row: Sequence, proposals: Columns) -> list[Columns]:
        # float64 on the host: one sum for each candidate, whoever else is in the step
        sums = np.bincount(proposals.variants, proposals.confidences.astype(np.float64))
        _search_of(row).note((sums / np.bincount(proposals.variants)).tolist())
        return []


def _search_of(row: Sequence) -> LengthSearch:
    assert row.search is not None, "the row's lengths are still to be chosen"
    return row.search


def _candidate(row: Sequence, search: LengthSearch, lengths: list[int]) -> Variant:
    """Positions are those of the row's own canvas, in which each hole has its longest length."""
    ids, spans = canvas_of(row.request, lengths)
    holes = [i for i, span in enumerate(spans) if span.kind is SpanKind.HOLE]
    assert search.hole is not None, "a length is still to be chosen"
    before = holes[search.hole]
    offsets = np.arange(lengths[search.hole])
    begin = sum(span.length for span in spans[:before])
    return Variant(
        token_ids=np.array(ids, dtype=np.int64),
        position_ids=np.arange(len(ids), dtype=np.int64),
        rule=row.mask_rule,
        heads=np.maximum(begin + offsets - row.shift, 0),
        positions=sum(span.length for span in row.request.spans[:before]) + offsets,
        noise_step=row.step,
    )
