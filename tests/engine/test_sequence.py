"""Blocks, schedules and canvases of one sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.tools import TINY
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.sequence import Sequence, _split_steps
from vdiff_grpc.engine.types import (
    EngineConfig,
    Hole,
    InfillPrompt,
    Prompt,
    Request,
    RequestParams,
    TokensPrompt,
)
from vdiff_grpc.engine.validation import limits_for, resolve

INFO = describe(str(TINY))
LIMITS = limits_for(EngineConfig(str(TINY)), INFO)


def sequence(prompt: Prompt, **params: object) -> Sequence:
    request = Request(prompt, RequestParams(seed=0, **params))  # type: ignore[arg-type]
    return Sequence(0, resolve(request, INFO, LIMITS, None), 0, INFO, None)


def test_equal_blocks_share_the_steps_as_llada_does() -> None:
    assert _split_steps(32, 128, 32) == (8, 8, 8, 8)
    assert _split_steps(6, 16, 8) == (3, 3)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_steps_are_split_without_remainder(num_new: int, block: int, data: st.DataObject) -> None:
    block = min(block, num_new)
    sizes = [min(block, num_new - b) for b in range(0, num_new, block)]
    steps = data.draw(st.integers(len(sizes), num_new))
    split = _split_steps(steps, num_new, block)
    assert sum(split) == steps
    assert all(1 <= s <= size for s, size in zip(split, sizes, strict=True))


def test_a_short_last_block_is_a_block_like_any_other() -> None:
    row = sequence(TokensPrompt((1, 2)), max_new_tokens=5, block_length=3)
    blocks = []
    while not row.finished:
        masked = row.masked_in_block()
        blocks.append(masked.tolist())
        row.commit(masked, np.zeros(len(masked), np.int64), np.ones(len(masked), np.float32))
        row.advance()
    assert blocks == [[2, 3, 4], [5, 6]]


def test_blocks_number_generated_positions_across_holes() -> None:
    row = sequence(InfillPrompt(((1, 2), Hole(3), (5,), Hole(2))), block_length=4)
    assert row.masked_in_block().tolist() == [2, 3, 4, 6]
    assert row.ids.tolist() == [1, 2, 96, 96, 96, 5, 96, 96]


def test_guidance_hides_prompt_and_frozen_text_from_its_second_variant() -> None:
    row = sequence(InfillPrompt(((1, 2), Hole(2), (5,))), cfg_scale=1.0)
    seeing, blind = row.plan().variants
    assert seeing.token_ids.tolist() == [1, 2, 96, 96, 5]
    assert blind.token_ids.tolist() == [96] * 5
    assert blind.wanted.tolist() == seeing.wanted.tolist() == [2, 3]


def test_end_tokens_are_kept_out_before_frozen_text_only() -> None:
    row = sequence(InfillPrompt((Hole(2), (5,), Hole(2))))
    assert row.bans_end[row.generated].tolist() == [True, True, False, False]
    row = sequence(TokensPrompt((1,)), max_new_tokens=2, ignore_eos=True)
    assert row.bans_end[row.generated].all()


def test_an_end_token_finishes_once_nothing_before_it_is_masked() -> None:
    row = sequence(TokensPrompt((1,)), max_new_tokens=4)
    row.commit(np.array([3]), np.array([95]), np.array([1.0], np.float32))
    row.advance()
    assert not row.finished
    row.commit(np.array([1, 2]), np.array([7, 8]), np.ones(2, np.float32))
    assert row.finished
    output = row.output()
    assert output.tokens.ids == (7, 8)
    assert output.stop == 95


def test_filling_what_is_not_masked_is_our_own_bug() -> None:
    row = sequence(TokensPrompt((1,)), max_new_tokens=4)
    with pytest.raises(AssertionError):
        row.commit(np.array([0]), np.array([5]), np.ones(1, np.float32))
