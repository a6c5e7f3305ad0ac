"""Blocks, schedules and canvases of one sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.tools import TINY, change
from vdiff_grpc.engine.blocks import split_steps
from vdiff_grpc.engine.columns import Action
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, Prompt, TokensPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Wino
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import limits_for, resolve

INFO = describe(str(TINY))
LIMITS = limits_for(EngineConfig(str(TINY)), INFO)


def sequence(prompt: Prompt, **params: object) -> Sequence:
    request = Request(prompt, RequestParams(seed=0, **params))  # type: ignore[arg-type]
    return Sequence(0, resolve(request, INFO, LIMITS, None), 0, INFO, None)


def test_equal_blocks_share_the_steps_as_llada_does() -> None:
    assert split_steps(32, [32] * 4) == [8, 8, 8, 8]
    assert split_steps(6, [8, 8]) == [3, 3]


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_steps_are_split_without_remainder(num_new: int, block: int, data: st.DataObject) -> None:
    block = min(block, num_new)
    sizes = [min(block, num_new - b) for b in range(0, num_new, block)]
    steps = data.draw(st.integers(len(sizes), num_new))
    split = split_steps(steps, sizes)
    assert sum(split) == steps
    assert all(1 <= s <= size for s, size in zip(split, sizes, strict=True))


def test_a_short_last_block_is_a_block_like_any_other() -> None:
    row = sequence(TokensPrompt((1, 2)), max_new_tokens=5, block_length=3)
    blocks = []
    while not row.finished:
        masked = row.masked_in_block()
        blocks.append(masked.tolist())
        change(row, Action.UNMASK, masked.tolist(), [0] * len(masked))
    assert blocks == [[2, 3, 4], [5, 6]]


def test_blocks_number_generated_positions_across_holes() -> None:
    row = sequence(InfillPrompt(((1, 2), Hole(3), (5,), Hole(2))), block_length=4)
    assert row.masked_in_block().tolist() == [2, 3, 4, 6]
    assert row.ids.tolist() == [1, 2, 96, 96, 96, 5, 96, 96]


def test_guidance_hides_prompt_and_frozen_text_from_its_second_variant() -> None:
    row = sequence(InfillPrompt(((1, 2), Hole(2), (5,))), cfg_scale=1.0)
    seeing = row.variant(row.masked_in_block())
    blind = row.blind(seeing)
    assert seeing.token_ids.tolist() == [1, 2, 96, 96, 5]
    assert blind.token_ids.tolist() == [96] * 5
    assert blind.heads.tolist() == seeing.heads.tolist() == [2, 3]


def test_end_tokens_are_kept_out_before_frozen_text_only() -> None:
    row = sequence(InfillPrompt((Hole(2), (5,), Hole(2))))
    assert row.bans_end[row.generated].tolist() == [True, True, False, False]
    row = sequence(TokensPrompt((1,)), max_new_tokens=2, ignore_eos=True)
    assert row.bans_end[row.generated].all()


def test_an_end_token_finishes_once_nothing_before_it_is_masked() -> None:
    row = sequence(TokensPrompt((1,)), max_new_tokens=4)
    change(row, Action.UNMASK, [3], [95])
    assert not row.finished
    change(row, Action.UNMASK, [1, 2], [7, 8])
    assert row.finished
    output = row.output()
    assert output.tokens.ids == (7, 8)
    assert output.stop == 95


def test_filling_what_is_not_masked_is_our_own_bug() -> None:
    row = sequence(TokensPrompt((1,)), max_new_tokens=4)
    with pytest.raises(AssertionError):
        change(row, Action.UNMASK, [0], [5])


def test_what_a_revocable_rule_fills_is_not_text_before_its_block_is_left() -> None:
    row = sequence(TokensPrompt((1,)), max_new_tokens=4, block_length=2, strategy=Wino())
    change(row, Action.UNMASK, [1], [7])
    assert row.text.num_pushed == 0
    change(row, Action.REVISE, [1], [8])
    change(row, Action.REMASK, [1], [0])
    assert (row.num_revised, row.num_remasked) == (1, 1)
    assert row.ids.tolist() == [1, 96, 96, 96, 96]
    change(row, Action.UNMASK, [1, 2], [7, 9])
    assert row.text.tokens.ids == (7, 9)
    assert row.block == 1


def test_more_steps_than_positions_are_shared_by_the_blocks_lengths() -> None:
    assert split_steps(12, [2, 1]) == [8, 4]
