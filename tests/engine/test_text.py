"""Committed text: stable prefixes, unfinished characters, stop strings, holes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdiff_grpc.engine.events import Committed, FinishReason
from vdiff_grpc.engine.text import TextEnd, TextStream

END = 999


class ByteTokens:
    """A vocabulary of 256 bytes: the real interface, the simplest table."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


def stream(length: int, *, stops: tuple[str, ...] = (), holes: tuple[int, ...] = ()) -> TextStream:
    ends = holes or (length,)
    return TextStream(0, ByteTokens(), stops, frozenset({END}), ends)  # type: ignore[arg-type]


def feed(text: TextStream, data: bytes | list[int]) -> list[Committed]:
    new: list[Committed] = []
    for position, byte in enumerate(data):
        text.push(byte, position, 0, 1.0)
        new += text.take_new()
    return new


def test_a_character_is_committed_whole() -> None:
    text = stream(10)
    data = "aé€😀".encode()
    deltas = [c.text for c in feed(text, data)]
    assert deltas == ["a", "é", "€", "😀"]
    assert text.tokens.ids == tuple(data)
    assert text.tokens.text_offsets == (0, 1, 1, 2, 2, 2, 3, 3, 3, 3)


def test_bytes_of_half_a_character_at_the_end_are_dropped_from_the_text_only() -> None:
    text = stream(4)
    feed(text, b"ok" + "€".encode()[:2])
    assert text.text == "ok"
    assert len(text.tokens.ids) == 4
    assert text.end == TextEnd(FinishReason.LENGTH, None)


def test_a_token_after_broken_bytes_stands_behind_their_replacement() -> None:
    text = stream(5)
    feed(text, b"ab\xc3c\x80")
    assert text.text == "ab\ufffdc\ufffd"
    assert text.tokens.text_offsets == (0, 1, 2, 3, 4)


def test_a_possible_stop_string_is_held_back_until_it_is_none() -> None:
    text = stream(20, stops=("STOP",))
    assert [c.text for c in feed(text, b"aSTO")] == ["a"]
    assert [c.text for c in feed(text, b"x")] == ["STOx"]


def test_the_text_ends_before_the_stop_string_and_its_tokens_go_with_it() -> None:
    text = stream(20, stops=("lo w", "zzz"))
    feed(text, b"hello world")
    assert text.text == "hel"
    assert bytes(text.tokens.ids) == b"hel"
    assert text.end == TextEnd(FinishReason.STOP, "lo w")


def test_an_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    text = stream(20)
    feed(text, [*b"ab", END, *b"cd"])
    assert text.text == "ab"
    assert text.tokens.ids == (97, 98)
    assert text.end == TextEnd(FinishReason.STOP, END)


def test_characters_and_stops_do_not_reach_across_holes() -> None:
    text = stream(6, stops=("bc",), holes=(2, 4, 6))
    new = feed(text, b"ab" + b"c\xe2" + b"\x82\xac")
    assert text.hole_texts == ["ab", "c", "\ufffd\ufffd"]
    assert "".join(c.text for c in new) == "".join(text.hole_texts) == text.text
    assert [c.hole_index for c in new] == sorted(c.hole_index for c in new)


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=40),
    st.lists(st.text("ab\x00é", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_deltas_concatenate_to_text_and_tokens(
    data: list[int], stops: list[str], draw: st.DataObject
) -> None:
    if draw.draw(st.booleans()):  # mostly what the stops are made of
        data = [b"ab\x00\xc3\xa9"[b % 5] for b in data]
    text = stream(len(data), stops=tuple(stops))
    new = feed(text, data)
    assert text.end is not None
    assert "".join(c.text for c in new) == text.text
    assert sum((c.tokens.ids for c in new), ()) == text.tokens.ids
    whole = bytes(data).decode("utf-8", "replace")
    assert whole.startswith(text.text)
    assert not any(stop in text.text for stop in stops)
    found = [whole.find(stop) for stop in stops if stop in whole.removesuffix("\ufffd")]
    if found:
        assert text.end.reason is FinishReason.STOP
        assert text.text == whole[: min(found)]
