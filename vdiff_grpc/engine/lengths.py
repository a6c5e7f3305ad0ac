"""Chooses the lengths of holes that a request leaves open. Knows scores, not the model.

A hole's candidates are canvases in which it has this length and everything open is masked. Their
score is the mean confidence, in one pass, of the hole's most likely tokens: it peaks near the
length that fits (arXiv:2602.00476, which calls it first-step confidence). Holes are chosen one
after the other, those to come at the middle of their range. A long range is searched from coarse
to fine. Nothing is drawn, and equal scores go to the shorter hole. A constrained hole has only
lengths that its constraint can fill, and the tokens of its best path in place of the likeliest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vdiff_grpc.engine.strategies import Strategy
from vdiff_grpc.engine.types import ResolvedRequest, SamplingParams, Span, SpanKind

MAX_CANDIDATES = 16  # of one hole, in one round


@dataclass(frozen=True, slots=True)
class HoleLengths(Strategy):
    """What a row does before it is laid out: no case of the contract."""


class LengthSearch:
    """Of one request. hole: the one that is being chosen; None: all are.

    lengths: of every hole as they stand.
    """

    def __init__(self, request: ResolvedRequest) -> None:
        self._request = request
        self._ranges = [allowed_lengths(request, i) for i in range(len(request.hole_ranges))]
        self.lengths = [_middle(lengths) for lengths in self._ranges]
        self.hole: int | None = -1
        self._scores: dict[int, float] = {}
        self._todo: list[int] = []
        self._next_hole()

    def batch(self) -> list[list[int]]:
        """Lengths of all holes, of each candidate that the next step computes: one at least."""
        room, batch = self._request.search_tokens, list[list[int]]()
        for length in self._todo:
            lengths = self.lengths.copy()
            lengths[self._chosen_now] = length
            room -= self.num_tokens(lengths)
            if batch and room < 0:
                break
            batch.append(lengths)
        return batch

    def num_tokens(self, lengths: Sequence[int]) -> int:
        """Of a canvas with these lengths."""
        return self._request.num_prompt_tokens + sum(lengths)

    def note(self, scores: Sequence[float]) -> None:
        """The scores of the last batch's candidates."""
        self._scores |= zip(self._todo, scores, strict=False)
        del self._todo[: len(scores)]
        if self._todo:
            return
        best = max(self._scores, key=lambda length: (self._scores[length], -length))
        self.lengths[self._chosen_now] = best
        below = max((length for length in self._scores if length < best), default=best)
        above = min((length for length in self._scores if length > best), default=best)
        lengths = self._ranges[self._chosen_now]
        self._todo = _spread([n for n in lengths if below < n < above and n != best])
        if not self._todo:
            self._next_hole()

    @property
    def _chosen_now(self) -> int:
        assert self.hole is not None, "a length is still to be chosen"
        return self.hole

    def _next_hole(self) -> None:
        for hole in range(self._chosen_now + 1, len(self._ranges)):
            if len(self._ranges[hole]) > 1:
                self.hole, self._scores = hole, {}
                self._todo = _spread(self._ranges[hole])
                return
        self.hole = None


def settled(request: ResolvedRequest) -> ResolvedRequest:
    """Laid out, where constraints leave each hole one length only."""
    if request.hole_ranges and (search := LengthSearch(request)).hole is None:
        return laid_out(request, search.lengths)
    return request


def allowed_lengths(request: ResolvedRequest, hole: int) -> list[int]:
    """Those of a hole's range, ascending, that its constraint can fill."""
    least, most = request.hole_ranges[hole]
    fits = [held.fits for held in request.constraints if held.hole == hole]
    return [n for n in range(least, most + 1) if all(can[n, 0] for can in fits)]


def _middle(lengths: Sequence[int]) -> int:
    middle = (lengths[0] + lengths[-1]) // 2
    return min(lengths, key=lambda length: (abs(length - middle), length))


def searching(params: SamplingParams) -> SamplingParams:
    """While lengths are chosen: what is open is one block, and nothing is drawn or told of it."""
    return dataclasses.replace(
        params,
        strategy=HoleLengths(),
        block_length=params.max_new_tokens,
        steps=None,
        cfg_scale=0.0,
        top_logprobs=0,
    )


def laid_out(request: ResolvedRequest, lengths: Sequence[int]) -> ResolvedRequest:
    """The request with holes of these lengths: as if they had been asked for."""
    canvas, spans = canvas_of(request, lengths)
    params, num_new = request.params, sum(lengths)
    steps = params.steps
    if steps is not None and steps <= params.max_new_tokens:
        steps = min(steps, num_new)
    return dataclasses.replace(
        request,
        canvas=tuple(canvas),
        spans=tuple(spans),
        params=dataclasses.replace(
            params,
            max_new_tokens=num_new,
            block_length=min(params.block_length, num_new),
            steps=steps,
        ),
        hole_ranges=(),
        search_tokens=0,
    )


def canvas_of(request: ResolvedRequest, lengths: Sequence[int]) -> tuple[list[int], list[Span]]:
    """Token ids and spans with holes of these lengths, none longer than in the request's."""
    canvas: list[int] = []
    spans: list[Span] = []
    position, holes = 0, iter(lengths)
    for span in request.spans:
        length = next(holes) if span.kind is SpanKind.HOLE else span.length
        assert length <= span.length, "the request has the longest"
        canvas += request.canvas[position : position + length]
        spans.append(Span(span.kind, length))
        position += span.length
    return canvas, spans


def _spread(lengths: Sequence[int]) -> list[int]:
    """So many of them, the ends among them, that one round can look at each."""
    if len(lengths) <= MAX_CANDIDATES:
        return list(lengths)
    last = len(lengths) - 1
    return [lengths[i * last // (MAX_CANDIDATES - 1)] for i in range(MAX_CANDIDATES)]
