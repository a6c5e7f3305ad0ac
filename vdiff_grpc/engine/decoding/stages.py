"""The stages that all rules share, over all rows of a step at once.

guidance -> confidence's normaliser -> banned ids -> temperature, top-k, top-p -> draw. Nothing
here reduces across rows, so a row's result does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff_grpc.engine.exact import ROWS, stable
from vdiff_grpc.engine.rng import Noise, NoiseRows


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance of some rows.

    conditional, unconditional: [num_guided] rows of the logits; scale: [num_guided] float32.
    """

    conditional: Tensor
    unconditional: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """The rows that are drawn with temperature > 0; columns [num_sampled].

    rows: rows of the logits. noise: the same rows' addresses.
    filtered: some row has top_k > 0 or top_p < 1.
    """

    rows: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    noise: NoiseRows
    filtered: bool


def guide_(logits: Tensor, guidance: Guidance) -> None:
    """In place on the conditional rows: un + (scale + 1) * (cond - un).

    Source: ML-GSAI/LLaDA generate.py b7e6c35.
    """
    blind = logits[guidance.unconditional]
    seeing = logits[guidance.conditional]
    scale = (guidance.scale + 1).unsqueeze(1)
    logits[guidance.conditional] = blind + scale * (seeing - blind)


def ban_(logits: Tensor, banned_ids: Tensor, end_ids: Tensor, rows_without_end: Tensor) -> None:
    """In place: what can never be drawn, and end tokens in the rows that must not end."""
    logits.index_fill_(1, banned_ids, -torch.inf)
    if len(rows_without_end) and len(end_ids):
        logits[rows_without_end.unsqueeze(1), end_ids.unsqueeze(0)] = -torch.inf


def draw(logits: Tensor, sampling: Sampling | None, noise: Noise) -> Tensor:
    """[num_rows] token ids: the most likely, or by Gumbel-max where temperature > 0.

    argmax(l / T - ln E) with E = -ln u is LLaDA's argmax(exp(l) / (-ln u)^T). Ties go to the
    lower id. logits: [num_rows, vocab_size] float32, untempered.
    """
    tokens = logits.argmax(dim=-1)
    if sampling is None:
        return tokens
    scaled = logits[sampling.rows] / sampling.temperature.unsqueeze(1)
    if sampling.filtered:
        _filter_(scaled, sampling.top_k, sampling.top_p)
    exponentials = noise.token_exponentials(sampling.noise, logits.shape[1], logits.device)
    scaled -= exponentials.log_()
    tokens[sampling.rows] = scaled.argmax(dim=-1)
    return tokens


def filtered(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *, some: bool
) -> Tensor:
    """The logits of the distribution that is drawn from: tempered, cut to top-k and top-p.

    temperature, top_k, top_p: one per row; temperature 0 leaves the logits as they are.
    some: whether any row has top_k or top_p.
    """
    scaled = logits / torch.where(temperature > 0, temperature, 1).unsqueeze(1)
    if some:
        _filter_(scaled, top_k, top_p)
    return scaled


def entropy(logits: Tensor) -> Tensor:
    """[num_rows] float32, nats. logits: [num_rows, vocab_size], -inf where banned.

    How torch sums a row up depends on how many rows there are: on a GPU on their number, on CPU
    on whether it is 1, which threads then share. So they are summed up in tiles of one shape.
    """
    probabilities = logits.softmax(dim=-1)
    terms = probabilities * logits.log_softmax(dim=-1)
    terms.masked_fill_(probabilities == 0, 0)  # not 0 * -inf
    return -torch.cat([stable(_row_sums, tile) for tile in torch.split(terms, ROWS)])


def _row_sums(tile: Tensor) -> Tensor:
    return tile.sum(dim=-1)


def _filter_(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """In place. Sorting is dear: rows without top-k and top-p are left out of it."""
    rows = torch.nonzero((top_k > 0) | (top_p < 1)).squeeze(1)
    kept = scaled[rows]
    out = _filtered_out(kept, top_k[rows], top_p[rows])
    scaled[rows] = kept.masked_fill_(out, -torch.inf)


def _filtered_out(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Tokens outside the k most likely, or outside the smallest set that holds top_p.

    Ties go to the lower id. top_k 0 and top_p 1 keep everything.
    """
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    out = (before >= top_p.unsqueeze(1)) & (top_p.unsqueeze(1) < 1)
    ranks = torch.arange(scaled.shape[1], device=scaled.device)
    out |= (ranks >= top_k.unsqueeze(1)) & (top_k.unsqueeze(1) > 0)
    out[:, 0] = False
    return torch.zeros_like(out).scatter_(1, order, out)
