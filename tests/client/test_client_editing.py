"""A finished answer is opened again: what stays frozen is untouched."""

from __future__ import annotations

import pytest

from vdiff_grpc import v1
from vdiff_grpc.client import Client, characters, finished_ids, hole, reopen

PROMPT = "Once upon a time, there was a"
MASK = 99
MASK_OF_DEMO = 2


def output(
    first: int, *ids: int, reason: v1.FinishReason = v1.FINISH_REASON_LENGTH, end: int | None = None
) -> v1.Output:
    positions = range(first, first + len(ids))
    return v1.Output(
        tokens=v1.Tokens(ids=ids, positions=positions),
        end=v1.OutputEnd(finish_reason=reason, stop_token_id=end),
    )


def test_an_answer_is_opened_in_a_place_and_the_rest_stays(demo_address: str) -> None:
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=32, seed=3, temperature=0.7)
        (answer,) = reply.outputs
        given = client.count_tokens(PROMPT).token_ids
        ids = finished_ids(given, answer, client.model_info().mask_token_id)
        begin, end = characters(answer, 10, 25)
        again = client.generate(infill=reopen(ids, [(begin, end)]), seed=8, temperature=1.0)
        longer = client.generate(
            infill=reopen(ids, [(begin, end, hole(min_length=1, max_length=20))]), seed=8
        )
    assert ids[: len(given)] == list(given)
    first, last = answer.tokens.positions[0], answer.tokens.positions[-1]
    assert list(answer.tokens.ids) == ids[first : last + 1]
    for edited in (again, longer):
        tokens = edited.outputs[0].tokens
        assert list(tokens.positions) == list(range(begin, begin + len(tokens.ids)))
        changed = finished_ids(
            [*ids[:begin], MASK_OF_DEMO, *ids[end:]], edited.outputs[0], MASK_OF_DEMO
        )
        assert changed == [*ids[:begin], *tokens.ids, *ids[end:]]
    assert len(again.outputs[0].tokens.ids) == end - begin
    assert 1 <= len(longer.outputs[0].tokens.ids) <= 20
    assert again.outputs[0].text != answer.text[10:25]


def test_the_texts_of_chosen_holes_make_the_document(demo_address: str) -> None:
    parts = ["Tom had a red", hole(min_length=1, max_length=8), " Then he went", hole(4), " home."]
    with Client(demo_address) as client:
        reply = client.generate(infill=parts, seed=2, n=2)
        given = list(client.count_tokens(infill=parts).token_ids)
    begins = given.index(MASK_OF_DEMO)
    for output in reply.outputs:
        assert output.text == "".join(output.hole_texts)
        assert len(output.hole_texts) == 2
        assert output.tokens.positions == reply.outputs[0].tokens.positions
        ids = finished_ids(given, output, MASK_OF_DEMO)
        assert ids[:begins] == given[:begins]
        assert ids[-2:] == given[-2:]
        assert MASK_OF_DEMO not in ids
        assert len(ids) == reply.usage.prompt_tokens + len(output.tokens.ids)


def test_a_continuation_keeps_its_end_token() -> None:
    assert finished_ids([5, 6], output(2, 7, 8), MASK) == [5, 6, 7, 8]
    ended = output(2, 7, reason=v1.FINISH_REASON_STOP, end=3)
    assert finished_ids([5, 6], ended, MASK) == [5, 6, 7, 3]
    nothing = output(2, reason=v1.FINISH_REASON_STOP, end=3)
    assert finished_ids([5, 6], nothing, MASK) == [5, 6, 3]


def test_holes_are_filled_whatever_their_length_came_to_be() -> None:
    answer = v1.Output(tokens=v1.Tokens(ids=[7, 8, 9], positions=[1, 2, 4]))
    given = [5, MASK, MASK, MASK, MASK, 6, MASK, MASK]
    assert finished_ids(given, answer, MASK) == [5, 7, 8, 6, 9]
    cut = output(1, 7, reason=v1.FINISH_REASON_STOP)
    assert finished_ids([5, MASK, MASK, 6], cut, MASK) == [5, 7, 6]


def test_what_is_no_finished_answer_to_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match="PARTIAL"):
        finished_ids([5], output(1, 7, reason=v1.FINISH_REASON_PARTIAL), MASK)
    with pytest.raises(ValueError, match=r"tokens at \[3\]"):
        finished_ids([5], output(3, 7), MASK)


def test_spans_become_holes_and_all_else_token_ids() -> None:
    wide = hole(min_length=2, max_length=5)
    assert reopen([1, 2, 3, 4, 5], [(3, 4), (0, 1)]) == [hole(1), [2, 3], hole(1), [5]]
    assert reopen([1, 2, 3], [(1, 2, wide)]) == [[1], wide, [3]]
    assert reopen([1, 2], [(1, 1, wide)]) == [[1], wide, [2]]
    assert reopen([1, 2], [(2, 2, wide)]) == [[1, 2], wide]


@pytest.mark.parametrize("spans", [[], [(1, 1)], [(0, 4)], [(0, 2), (1, 3)], [(2, 1)], [(-1, 1)]])
def test_spans_that_overlap_or_leave_the_document_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="span"):
        reopen([1, 2, 3], spans)


def test_characters_are_found_in_the_tokens_that_hold_them() -> None:
    tokens = v1.Tokens(ids=[1, 2, 3], positions=[4, 5, 9], text_offsets=[0, 2, 5])
    answer = v1.Output(text="abcdefg", tokens=tokens)
    assert characters(answer, 0, 1) == (4, 5)
    assert characters(answer, 1, 5) == (4, 6)
    assert characters(answer, 6, 7) == (9, 10)
    with pytest.raises(ValueError, match="several holes"):
        characters(answer, 4, 6)
    with pytest.raises(ValueError, match="not in a text of 7"):
        characters(answer, 7, 9)
