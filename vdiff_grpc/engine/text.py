"""Text that can no longer change: the longest prefix of an output that is committed.

Holds back what may still be part of a stop string and the bytes of an unfinished character.
Knows tokens and bytes, not the canvas.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from vdiff_grpc.engine.events import Committed, FinishReason, Tokens, TopTokens
from vdiff_grpc.engine.tokenizer import Tokenizer


@dataclass(slots=True)
class _Column:
    """One generated token that waits for its text to be certain."""

    id: int
    position: int
    step: int
    confidence: float
    token_bytes: bytes
    text_offset: int
    top: TopTokens | None


@dataclass(slots=True)
class _Delta:
    """What has become certain in one hole and was not taken yet."""

    hole: int
    texts: list[str] = field(default_factory=list)
    columns: list[_Column] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TextEnd:
    reason: FinishReason
    stop: str | int | None


@dataclass(slots=True)
class TextStream:
    """One output's text. Tokens are pushed in the order of their positions, each once.

    hole_ends: how many tokens have been pushed at the end of each hole; characters and stop
    strings do not reach across holes. whole_ending: a text that ends
    so is complete when the last one is full; None: none is.
    """

    output_index: int
    tokenizer: Tokenizer | None
    stop_strings: Sequence[str]
    end_ids: frozenset[int]
    hole_ends: Sequence[int]
    whole_ending: str | None = None
    text: str = ""
    hole_texts: list[str] = field(default_factory=list)
    end: TextEnd | None = None
    num_pushed: int = 0
    _decoder: codecs.IncrementalDecoder = field(init=False)
    _seen: str = ""  # all decoded text, held back or not
    _hole_begin: int = 0  # of the current hole, in _seen
    _waiting: list[_Column] = field(default_factory=list)
    _certain: list[_Column] = field(default_factory=list)
    _new: list[_Delta] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(
        self,
        token: int,
        position: int,
        step: int,
        confidence: float,
        top: TopTokens | None = None,
    ) -> None:
        """The next token. Ignored after the end."""
        if self.end is not None:
            return
        self.num_pushed += 1
        if token in self.end_ids:
            self._finish_hole()
            self.end = TextEnd(FinishReason.STOP, token)
            return
        data = self.tokenizer.token_bytes(token) if self.tokenizer else b""
        offset = len(self._seen) + self._broken_before(data)
        self._waiting.append(_Column(token, position, step, confidence, data, offset, top))
        before = len(self._seen)
        self._seen += self._decoder.decode(data)
        if self.stop_strings and self._match_stop(before):
            return
        if self.num_pushed == self.hole_ends[len(self.hole_texts)]:
            self.end_hole()
        else:
            self._release(len(self._seen) - self._held_back())

    @property
    def tokens(self) -> Tokens:
        """All whose text is certain."""
        return _tokens(self._certain)

    def end_hole(self) -> None:
        """The current hole is full; with the last one the output ends."""
        self._finish_hole()
        if len(self.hole_texts) == len(self.hole_ends):
            is_whole = self.whole_ending is not None and self._seen.endswith(self.whole_ending)
            reason = FinishReason.STOP if is_whole else FinishReason.LENGTH
            self.end = TextEnd(reason, None)

    def push_apart(
        self, token: int, position: int, step: int, confidence: float, top: TopTokens | None
    ) -> None:
        """A token behind a gap in the current hole: told with the others, no part of the text."""
        data = self.tokenizer.token_bytes(token) if self.tokenizer else b""
        offset = len(self._seen)
        self._waiting.append(_Column(token, position, step, confidence, data, offset, top))

    def leave_hole(self) -> None:
        """The current hole stays as it is; with the last one the output ends as PARTIAL."""
        self.num_pushed = self.hole_ends[len(self.hole_texts)]
        self._finish_hole()
        if len(self.hole_texts) == len(self.hole_ends):
            self.end = TextEnd(FinishReason.PARTIAL, None)

    def take_new(self) -> list[Committed]:
        """What has become certain since the last call."""
        new, self._new = self._new, []
        return [
            Committed(self.output_index, "".join(d.texts), _tokens(d.columns), d.hole) for d in new
        ]

    def _match_stop(self, before: int) -> bool:
        """Ends the text before the earliest stop string that the new characters complete."""
        longest = max(len(s) for s in self.stop_strings)
        begin = max(self._hole_begin, before - longest + 1)
        found = [(at, s) for s in self.stop_strings if (at := self._seen.find(s, begin)) >= 0]
        if not found:
            return False
        at, stop = min(found, key=lambda pair: (pair[0], -len(pair[1])))
        self._seen = self._seen[:at]
        self._waiting = [c for c in self._waiting if c.text_offset < at]
        self._finish_hole()
        self.end = TextEnd(FinishReason.STOP, stop)
        return True

    def _broken_before(self, data: bytes) -> int:
        """Characters that stand for bytes which turn out to be no beginning of this token's."""
        pending = self._decoder.getstate()[0]
        if not pending or not data or 0x80 <= data[0] <= 0xBF:
            return 0
        return len(pending.decode("utf-8", "replace"))

    def _held_back(self) -> int:
        """Characters at the end that may be the head of a stop string."""
        if not self.stop_strings:
            return 0
        longest = max(map(len, self.stop_strings)) - 1
        begin = max(self._hole_begin, len(self._seen) - longest)
        for at in range(begin, len(self._seen)):
            head = self._seen[at:]
            if any(stop.startswith(head) for stop in self.stop_strings):
                return len(head)
        return 0

    def _finish_hole(self) -> None:
        """All of the hole's text is certain now. Bytes of half a character are dropped."""
        self._decoder.reset()
        self._release(len(self._seen), everything=True)
        self.hole_texts.append(self._seen[self._hole_begin :])
        self._hole_begin = len(self._seen)

    def _release(self, until: int, *, everything: bool = False) -> None:
        """Text up to `until` characters, with the tokens that begin and end before it."""
        count = len(self._waiting)
        if not everything:
            ends = [c.text_offset for c in self._waiting[1:]] + [len(self._seen)]
            pending = self._decoder.getstate()[0]
            if pending:  # the tokens whose bytes are still an unfinished character wait too
                size = len(pending)
                while count and size > 0:
                    count -= 1
                    size -= len(self._waiting[count].token_bytes)
            while count and ends[count - 1] > until:
                count -= 1
        text = self._seen[len(self.text) : until]
        columns, self._waiting = self._waiting[:count], self._waiting[count:]
        if not text and not columns:
            return
        self.text += text
        self._certain += columns
        hole = len(self.hole_texts)
        if not self._new or self._new[-1].hole != hole:
            self._new.append(_Delta(hole))
        self._new[-1].texts.append(text)
        self._new[-1].columns += columns


def _tokens(columns: Sequence[_Column]) -> Tokens:
    return Tokens(
        tuple(c.id for c in columns),
        tuple(c.position for c in columns),
        tuple(c.step for c in columns),
        tuple(c.confidence for c in columns),
        tuple(c.token_bytes for c in columns),
        tuple(c.text_offset for c in columns),
        tuple(c.top for c in columns if c.top is not None),
    )
