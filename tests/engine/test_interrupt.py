"""A row that is cut short: what is text, what are tokens."""

from __future__ import annotations

from tests.engine.test_sequence import INFO, sequence
from tests.engine.test_text import ByteTokens
from tests.engine.tools import change
from vdiff_grpc.engine.columns import Action
from vdiff_grpc.engine.events import FinishReason
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import Wino

END = INFO.end_token_ids[0]
A, B, C, D = (ord(letter) for letter in "ABCD")  # the tiny vocabulary has 97 ids


def with_letters(row: Sequence) -> Sequence:
    row.tokenizer = row.text.tokenizer = ByteTokens()  # type: ignore[assignment]
    return row


def test_the_text_ends_at_the_first_gap_and_the_tokens_do_not() -> None:
    row = with_letters(sequence(TokensPrompt((1, 2)), max_new_tokens=6, block_length=6))
    change(row, Action.UNMASK, [2, 3, 5], [A, B, C])
    row.interrupt()
    output = row.output()
    assert output.finish_reason is FinishReason.PARTIAL
    assert output.text == "AB"
    assert output.tokens.ids == (A, B, C)
    assert output.tokens.positions == (2, 3, 5)
    assert output.tokens.text_offsets == (0, 1, 2)
    deltas = row.text.take_new()
    assert "".join(delta.text for delta in deltas) == "AB"
    assert sum((delta.tokens.ids for delta in deltas), ()) == (A, B, C)


def test_nothing_behind_an_end_token_is_told() -> None:
    row = with_letters(sequence(TokensPrompt((1, 2)), max_new_tokens=6, block_length=6))
    change(row, Action.UNMASK, [2, 4, 5, 6], [A, B, END, C])
    row.interrupt()
    assert row.output().tokens.ids == (A, B)
    assert row.output().stop is None


def test_every_hole_has_the_text_from_its_own_beginning() -> None:
    prompt = InfillPrompt(((1,), Hole(3), (5,), Hole(2), (6,), Hole(2)))
    row = with_letters(sequence(prompt, block_length=7))
    change(row, Action.UNMASK, [1, 3, 5, 6, 9], [A, B, C, D, A])
    row.interrupt()
    output = row.output()
    assert output.hole_texts == ("A", "CD", "")
    assert output.text == "ACD"
    assert output.tokens.positions == (1, 3, 5, 6, 9)


def test_what_a_rule_might_still_have_changed_is_part_of_it() -> None:
    row = with_letters(
        sequence(TokensPrompt((1, 2)), max_new_tokens=4, block_length=4, strategy=Wino())
    )
    change(row, Action.UNMASK, [2, 3, 4], [A, B, C])
    assert row.text.text == ""
    row.interrupt()
    assert row.output().text == "ABC"


def test_a_row_without_a_step_is_empty() -> None:
    row = sequence(TokensPrompt((1, 2)), max_new_tokens=4)
    row.interrupt()
    output = row.output()
    assert (output.text, output.tokens.ids, output.finish_reason) == ("", (), FinishReason.PARTIAL)
    assert output.forward_passes == 0
