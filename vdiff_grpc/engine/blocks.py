"""How generated positions fall into blocks, and steps into shares of them. Knows no row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from vdiff_grpc.engine.attention import CAUSAL, FULL, MaskRule, block_causal
from vdiff_grpc.engine.columns import Bools, Ints
from vdiff_grpc.engine.types import AttentionPattern, ModelInfo, SamplingParams


def mask_rule_of(info: ModelInfo) -> MaskRule:
    if info.attention is AttentionPattern.BLOCK_CAUSAL:
        assert info.block_length is not None, "block-causal attention has a block length"
        return block_causal(info.block_length)
    return CAUSAL if info.attention is AttentionPattern.CAUSAL else FULL


def split_blocks(generated: Ints, block_length: int, info: ModelInfo) -> list[slice]:
    """Slices of the generated positions that are filled one after the other."""
    if info.attention is AttentionPattern.BLOCK_CAUSAL:
        numbers = generated // block_length
    elif info.attention is AttentionPattern.CAUSAL:
        numbers = np.arange(len(generated))
    else:
        numbers = np.arange(len(generated)) // block_length
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(generated)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def total_steps(params: SamplingParams, num_generated: int) -> int | None:
    """The surplus of a last block gets its share beside what was asked for."""
    steps, asked = params.steps, params.max_new_tokens
    if steps is None:
        return None
    return steps + (num_generated - asked) * steps // asked


def without_end(frozen: Bools, *, ignore_eos: bool) -> Bools:
    """Where end tokens may not be drawn: everywhere on request, and before frozen text."""
    if ignore_eos:
        return np.ones_like(frozen)
    places = np.flatnonzero(frozen)
    return np.arange(len(frozen)) < (places[-1] if len(places) else -1)


def split_steps(steps: int | None, sizes: list[int]) -> list[int]:
    """Steps of each block: one at least, the rest in proportion to the blocks' lengths.

    With equal blocks and a number of steps that divides evenly this is LLaDA's split.
    """
    if steps is None:
        return sizes
    ends = np.cumsum(sizes)
    if steps >= ends[-1]:  # more than one step for a position
        shares = steps * ends // ends[-1]
    else:
        # beyond one step for each block, a block can use one for each further position
        numbers = np.arange(1, len(sizes) + 1)
        shares = numbers + (steps - len(sizes)) * (ends - numbers) // (ends[-1] - len(sizes))
    split: list[int] = np.diff(shares, prepend=0).tolist()
    return split
