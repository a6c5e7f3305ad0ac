"""Who sees whom, as masks."""

from __future__ import annotations

import pytest

from vdiff_grpc.engine.attention import CAUSAL, FULL, MaskRule, block_causal, mask_of, shadow


def seen(rule: MaskRule, num_q: int, num_k: int, window: int | None = None) -> list[list[int]]:
    """The keys that each query sees."""
    mask = mask_of(rule, num_q, num_k, window)
    return [row.nonzero().flatten().tolist() for row in mask]


def test_with_a_cache_the_last_tokens_ask() -> None:
    assert seen(CAUSAL, 2, 4) == [[0, 1, 2], [0, 1, 2, 3]]
    assert seen(CAUSAL, 1, 4) == [[0, 1, 2, 3]]


def test_a_block_sees_itself_and_those_before() -> None:
    assert seen(block_causal(2), 4, 4) == [[0, 1], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert seen(block_causal(4), 4, 8) == [list(range(8))] * 4


def test_a_window_is_one_sided_only_where_attention_looks_back() -> None:
    assert seen(CAUSAL, 4, 4, 2) == [[0], [0, 1], [1, 2], [2, 3]]
    assert seen(FULL, 4, 4, 2) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]


def test_a_shadow_sees_all_but_its_own_token_and_nobody_sees_it() -> None:
    assert seen(shadow((1, 2)), 5, 5) == [[0, 1, 2]] * 3 + [[0, 2, 3, 4], [0, 1, 3, 4]]


def test_in_a_window_a_shadow_stands_where_its_token_stands() -> None:
    rows = seen(shadow((4, 5)), 12, 12, 3)
    assert rows[10] == [2, 3, 5, 6, 10, 11]
    assert rows[11] == [3, 4, 6, 7, 10, 11]


@pytest.mark.parametrize("rule", [FULL, CAUSAL, block_causal(4)])
def test_a_kernel_gets_a_mask_only_where_it_needs_one(rule: MaskRule) -> None:
    for num_k in range(2, 13):
        for num_q in range(1, num_k + 1):
            everything = bool(mask_of(rule, num_q, num_k).all())
            assert rule.sees_all(num_q, num_k) == everything
