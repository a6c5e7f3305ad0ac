"""The stages that all rules share, over all rows of a step at once.

guidance -> banned ids -> confidence's normaliser -> temperature, top-k, top-p -> draw. Nothing
here reduces across rows, so a row's result does not depend on its neighbours.

What is computed over a whole vocabulary is computed in tiles of rows: on a CPU a tile stays in the
cache, on a GPU its copies are small beside the logits, whatever a caller asks for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff_grpc.engine.exact import ROWS
from vdiff_grpc.engine.rng import Noise, NoiseRows

TILE_BYTES = 64 << 20  # of float32 logits, on a GPU
CACHE_BYTES = 1 << 20  # the same, on a CPU
_FAR = 1e4  # nats; exp(-_FAR) is 0


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
    size = tile_rows(logits)
    for begin in range(0, len(guidance.scale), size):
        part = slice(begin, begin + size)
        conditional = guidance.conditional[part]
        blind, seeing = logits[guidance.unconditional[part]], logits[conditional]
        scale = (guidance.scale[part] + 1).unsqueeze(1)
        logits[conditional] = blind + scale * (seeing - blind)


def ban_(logits: Tensor, banned_ids: Tensor, end_ids: Tensor, rows_without_end: Tensor) -> Tensor:
    """In place: what can never be drawn, and end tokens in the rows that must not end.

    Returns [num_rows, num_ids] what was there, and -inf where nothing was banned.
    """
    banned = logits[:, banned_ids]
    logits.index_fill_(1, banned_ids, -torch.inf)
    if not len(end_ids):
        return banned
    # as wide whoever bans: the order of a sum depends on its length
    ends = torch.full_like(logits[:, : len(end_ids)], -torch.inf)
    if len(rows_without_end):
        where = rows_without_end.unsqueeze(1), end_ids.unsqueeze(0)
        ends[rows_without_end] = logits[where]
        logits[where] = -torch.inf
    return torch.cat([banned, ends], dim=1)


def normaliser(logits: Tensor, banned: Tensor) -> Tensor:
    """[num_rows] logsumexp over the whole vocabulary. banned: what ban_ took out of the logits."""
    return torch.logaddexp(in_tiles(_logsumexp, logits), banned.logsumexp(dim=-1))


def normaliser_and_entropy(logits: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
    """Both, in one look at the logits: the same numbers as each by itself."""
    # columns side by side in memory: torch computes strided numbers by another formula
    sums, entropies = in_tiles(_logsumexp_and_entropy, logits).t().contiguous()
    return torch.logaddexp(sums, banned.logsumexp(dim=-1)), entropies


def draw(logits: Tensor, sampling: Sampling | None, noise: Noise) -> Tensor:
    """[num_rows] token ids: the most likely, or by Gumbel-max where temperature > 0.

    argmax(l / T - ln E) with E = -ln u is LLaDA's argmax(exp(l) / (-ln u)^T). Ties go to the
    lower id. logits: [num_rows, vocab_size] float32, untempered.
    """
    tokens = most_likely(logits)
    if sampling is None:
        return tokens
    for part in _parts(sampling, tile_rows(logits)):
        tokens[part.rows] = most_likely(_perturbed(logits, part, noise, -torch.inf))
    return tokens


def perturbed(logits: Tensor, sampling: Sampling, noise: Noise) -> Tensor:
    """[num_sampled, vocab_size] the scores whose highest a draw takes.

    What top-k and top-p leave out is only far below all else: it may be all that is allowed.
    """
    parts = _parts(sampling, tile_rows(logits))
    return torch.cat([_perturbed(logits, part, noise, -_FAR) for part in parts])


def most_likely(logits: Tensor) -> Tensor:
    """[num_rows] the id of each row's highest logit; ties go to the lower id."""
    if logits.device.type == "cpu":  # torch's own takes twelve times as long (2.13, measured)
        return torch.from_numpy(logits.numpy().argmax(1))
    return logits.argmax(dim=-1)


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
    """[num_rows] float32, nats. logits: [num_rows, vocab_size], -inf where banned."""
    return in_tiles(_logsumexp_and_entropy, logits)[:, 1].contiguous()


def tile_rows(logits: Tensor) -> int:
    """Rows of a tile of such logits. On CPU a power of two: no row of it is a vector's rest."""
    row_bytes = 4 * logits.shape[1]
    if logits.device.type == "cpu":
        fitting = min(ROWS, max(2, CACHE_BYTES // row_bytes))
        return 1 << (fitting.bit_length() - 1)
    return max(1, TILE_BYTES // (row_bytes * ROWS)) * ROWS


def in_tiles(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """[num_rows, ...] what the function makes of [n, vocab_size], with one n for all tiles.

    How torch reduces a row depends on how many rows there are: on a GPU on their number, on CPU
    on whether it is 1, which threads then share.
    """
    size = tile_rows(logits)
    found = []
    for tile in torch.split(logits, size):
        missing = size - len(tile)
        found.append(function(F.pad(tile, (0, 0, 0, missing)) if missing else tile))
    return torch.cat(found)[: len(logits)]


def _logsumexp(tile: Tensor) -> Tensor:
    """As torch's own, in half the time on CPU: softmax reads a row once."""
    return tile.amax(dim=-1) - tile.softmax(dim=-1).amax(dim=-1).log_()


def _logsumexp_and_entropy(tile: Tensor) -> Tensor:
    """[n, 2]. The entropy is the sum of p * (most - l) and ln sum exp(l - most): no term is
    negative, and nothing cancels.
    """
    probabilities = tile.softmax(dim=-1)
    most = tile.amax(dim=-1)
    log_share = probabilities.amax(dim=-1).log_()
    below = (most.unsqueeze(1) - tile).clamp_(max=_FAR)  # banned: not 0 * inf
    entropies = probabilities.mul_(below).sum(dim=-1) - log_share
    return torch.stack([most - log_share, entropies], dim=1)


def _parts(sampling: Sampling, size: int) -> Iterator[Sampling]:
    """At most so many rows at a time."""
    for begin in range(0, len(sampling.rows), size):
        part = slice(begin, begin + size)
        yield dataclasses.replace(
            sampling,
            rows=sampling.rows[part],
            temperature=sampling.temperature[part],
            top_k=sampling.top_k[part],
            top_p=sampling.top_p[part],
            noise=sampling.noise.part(part),
        )


def _perturbed(logits: Tensor, part: Sampling, noise: Noise, below: float) -> Tensor:
    """below: added to what top-k and top-p leave out."""
    scaled = logits[part.rows].div_(part.temperature.unsqueeze(1))
    if part.filtered:
        _filter_(scaled, part.top_k, part.top_p, below)
    scaled -= noise.token_exponentials(part.noise, logits.shape[1], logits.device).log_()
    return scaled


def _filter_(scaled: Tensor, top_k: Tensor, top_p: Tensor, below: float = -torch.inf) -> None:
    """In place. Sorting is dear: rows without top-k and top-p are left out of it."""
    rows = torch.nonzero((top_k > 0) | (top_p < 1)).squeeze(1)
    kept = scaled[rows]
    out = _filtered_out(kept, top_k[rows], top_p[rows])
    scaled[rows] = torch.where(out, kept + below, kept)


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
