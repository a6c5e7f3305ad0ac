"""How likely the model itself finds a finished answer: the passes that takes, and their sum.

Host side only. A causal model's answer has the exact likelihood: the product of the probabilities
with which its tokens were drawn. A masked diffusion model has no such product, since its tokens
were given whatever had been filled before; the likelihood is estimated from masks put back on the
finished answer of L tokens: with l of them masked at random, L / l times the sum of the masked
tokens' log-probabilities has the expected value of the logarithm, where l is uniform on 1..L.

Source: LLaDA, arXiv:2502.09992, equation 6 and appendix B.5; ML-GSAI/LLaDA get_log_likelihood.py
4fc3cd2, with its evenly spread l. There 128 looks make one number for a benchmark; here a few rank
candidates, which get the same masks, so that what is drawn badly is drawn badly for all.

A block-causal model's likelihood is the product over its blocks, each given those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.caches.policy import Kept
from vdiff_grpc.engine.caches.registry import POLICIES
from vdiff_grpc.engine.columns import Floats, Ints, Variant
from vdiff_grpc.engine.rng import NoiseRows, Purpose
from vdiff_grpc.engine.sequence import CANVAS, Sequence, State
from vdiff_grpc.engine.types import AttentionPattern

NUM_LOOKS = 8  # at an answer, or at each block of one


@dataclass(frozen=True, slots=True)
class Look:
    """Canvas positions [begin, end) to compute, some of them masked; ascending.

    weight: of the sum of their log-probabilities.
    """

    begin: int
    end: int
    masked: Ints
    weight: float


@dataclass(slots=True)
class Scoring:
    """A finished row's memory while its likelihood is being estimated.

    num_tokens: of the answer. passes: still to be computed, each of looks side by side.
    """

    num_tokens: int
    passes: list[tuple[Look, ...]] = field(default_factory=list)
    log_likelihood: float = 0.0

    @property
    def score(self) -> float | None:
        """In nats per token; None while passes are left."""
        return None if self.passes else self.log_likelihood / self.num_tokens

    def plan(self, row: Sequence) -> tuple[Variant, ...]:
        """What the next pass computes."""
        return tuple(_variant(row, look, i) for i, look in enumerate(self.passes[0]))

    def note(self, log_probabilities: Floats) -> None:
        """The pass has been computed: of each look in turn, of each masked position."""
        begin = 0
        for look in self.passes.pop(0):
            end = begin + len(look.masked)
            total = float(log_probabilities[begin:end].astype(np.float64).sum())
            self.log_likelihood += look.weight * total
            begin = end


def is_scoring(row: Sequence) -> bool:
    """Whether the row has passes left after its answer."""
    return isinstance(row.memory, Scoring) and row.memory.score is None


def score_of(row: Sequence) -> float | None:
    return row.memory.score if isinstance(row.memory, Scoring) else None


def begin_scoring(row: Sequence) -> None:
    """The row's answer is finished: its memory is now that of its score."""
    answer = _answer(row)
    if row.info.attention is AttentionPattern.CAUSAL:
        least = np.finfo(np.float32).tiny
        logs = np.log(row.confidences[answer].clip(least).astype(np.float64))
        row.memory = Scoring(len(answer), [], float(logs.sum()))
        return
    if row.info.attention is AttentionPattern.FULL:
        row.policy = POLICIES[CacheKind.NONE]  # what is kept has seen other tokens
    row.memory = Scoring(len(answer), _passes(row, _drawn(row, answer)))


def looks(row: Sequence, part: Ints, masks: list[Ints]) -> list[Look]:
    """part: positions of the answer that are scored together. masks: those of each look."""
    if row.info.attention is AttentionPattern.BLOCK_CAUSAL:
        first = int(part[0])
        begin, end = first - first % row.attention_block, int(part[-1]) + 1
    else:  # what follows the answer is not there; frozen text is
        frozen = np.flatnonzero(row.state == State.FROZEN)
        begin, end = 0, max(int(part[-1]), int(frozen[-1]) if len(frozen) else 0) + 1
    weights = [len(part) / len(masked) / len(masks) for masked in masks]
    return [Look(begin, end, m, w) for m, w in zip(masks, weights, strict=True)]


def num_masked(first: int, length: int, count: int) -> list[int]:
    """How many of `length` positions are masked in each of `count` looks: evenly spread."""
    spread = np.round(first + np.arange(count) * (length / count)).astype(np.int64)
    numbers: list[int] = ((spread - 1) % length + 1).tolist()
    return numbers


def _answer(row: Sequence) -> Ints:
    """Positions of what was generated, the token included that ended it."""
    answer: Ints = row.generated[: row.text.num_pushed]
    return answer


def _drawn(row: Sequence, answer: Ints) -> list[Look]:
    """The looks at the answer, by the request's seed."""
    parts = [answer]
    if row.info.attention is AttentionPattern.BLOCK_CAUSAL:
        numbers = answer // row.attention_block
        parts = np.split(answer, np.flatnonzero(np.diff(numbers)) + 1)
    count = min(NUM_LOOKS, max(map(len, parts)))
    return [look for part in parts for look in looks(row, part, _masks(row, part, count))]


def _masks(row: Sequence, part: Ints, count: int) -> list[Ints]:
    length = len(part)
    first = int(_keys(row, count, part[:1])[0] >> np.uint64(32)) * length >> 32
    masks = []
    for number, most in enumerate(num_masked(1 + first, length, count)):
        order = np.argsort(_keys(row, number, part), kind="stable")
        masks.append(part[np.sort(order[:most])])
    return masks


def _keys(row: Sequence, number: int, positions: Ints) -> np.ndarray:
    """A random number for each position. All candidates of a request have the same."""
    seeds = np.full(len(positions), row.params.seed, dtype=np.uint64)
    numbers = np.full(len(positions), number, dtype=np.int64)
    return NoiseRows(seeds, numbers, positions).keys(Purpose.LIKELIHOOD)


def _passes(row: Sequence, looks: list[Look]) -> list[tuple[Look, ...]]:
    """As many looks side by side as a step of this row may compute."""
    room = row.policy.most(row, row.leases.get(CANVAS))
    passes: list[tuple[Look, ...]] = []
    left = 0
    for look in looks:
        length = look.end - look.begin
        if length <= left:
            passes[-1] += (look,)
        else:
            passes.append((look,))
            left = room
        left -= length
    return passes


def _variant(row: Sequence, look: Look, number: int) -> Variant:
    """The answer with masks; nothing that was generated behind its end."""
    ids = row.ids.copy()
    ids[row.generated[row.text.num_pushed :]] = row.mask_token_id
    ids[look.masked] = row.mask_token_id
    place = slice(look.begin, look.end)
    kept = None
    in_blocks = row.info.attention is AttentionPattern.BLOCK_CAUSAL
    if in_blocks:  # what stands before is settled, and kept
        kept = Kept(row.leases[CANVAS], ((0, look.begin),), look.begin, 0)
    return Variant(
        token_ids=ids[place],
        position_ids=row.position_ids[place],
        rule=row.mask_rule,
        heads=np.maximum(look.masked - row.shift, 0) - look.begin,
        positions=look.masked,
        noise_step=row.step,
        kept=kept,
        # blocks side by side are one pass over the answer
        forwards=0 if number and in_blocks else 1,
    )
