"""Reads calls of tools out of an answer's text, also piece by piece. Knows no API.

The server holds the text to one form (generation.proto, ChatInput.tools), which is all that is
read here. What turns out to be another is text.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

_OPEN = "<tool_call>\n"
_HEAD = r'\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": '
_FIRST = re.compile(rf"(?:{_OPEN})?{_HEAD}")
_NEXT = re.compile(rf"\}}(?:\n</tool_call>)?\n(?:{_OPEN})?{_HEAD}")
_MAX_FIRST = len(_OPEN + '{"name": "", "arguments": ') + 64
# What a string or a nested object ends or begins with, and an escape as one.
_MARK = re.compile(r'\\.|["{}]', re.DOTALL)
_MARK_OUTSIDE = re.compile(r'["{}]')


@dataclass(slots=True)
class Call:
    """One call as far as it has been read. arguments: JSON, a beginning of it while not done."""

    id: str
    name: str
    arguments: str = ""
    done: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new: text before all calls, or arguments of a call; with the call's begin, its index."""

    text: str = ""
    call: int | None = None
    begins: bool = False


@dataclass(slots=True)
class CallReader:
    """Of one answer. begins_free: text may stand before the calls."""

    begins_free: bool
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    _rest: str = ""  # not read yet
    _depth: int = 0
    _in_string: bool = False
    _is_text: bool = False  # and no calls come any more

    def feed(self, text: str) -> list[Piece]:
        """What has become certain."""
        self._rest += text
        pieces: list[Piece] = []
        while (piece := self._next()) is not None:
            pieces.append(piece)
        return [piece for piece in pieces if piece.text or piece.begins]

    def finish(self) -> list[Piece]:
        """The answer is over: what was held back is text, or of a call that was cut off."""
        if self.calls or not self._rest:
            return []
        rest, self._rest = self._rest, ""
        self.text += rest
        return [Piece(rest)]

    def read(self, text: str) -> None:
        """A whole answer."""
        self.feed(text)
        self.finish()

    def _next(self) -> Piece | None:
        """One step, or None: more must come."""
        if self._is_text:
            return self._said(len(self._rest))
        if self.calls and not self.calls[-1].done:
            return self._arguments()
        return self._begin() if self.calls else self._before()

    def _before(self) -> Piece | None:
        """Before the first call."""
        if not self.begins_free:
            return self._begin()
        at = self._rest.find(_OPEN)
        if at > 0:
            return self._said(at)
        if at == 0:
            return self._begin()
        return self._said(len(self._rest) - _overlap(self._rest, _OPEN))

    def _said(self, length: int) -> Piece | None:
        if not length:
            return None
        said, self._rest = self._rest[:length], self._rest[length:]
        self.text += said
        return Piece(said)

    def _begin(self) -> Piece | None:
        """A call's begin, where one must be."""
        match = (_NEXT if self.calls else _FIRST).match(self._rest)
        if match is None:
            self._is_text = not self.calls and len(self._rest) >= _MAX_FIRST
            return Piece() if self._is_text else None
        self.calls.append(Call(f"call_{secrets.token_hex(12)}", match[1]))
        self._rest = self._rest[match.end() :]
        return Piece("", len(self.calls) - 1, begins=True)

    def _arguments(self) -> Piece | None:
        """Up to the brace that ends them."""
        call, at, rest = self.calls[-1], 0, self._rest
        while match := (_MARK if self._in_string else _MARK_OUTSIDE).search(rest, at):
            mark, at = match[0], match.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string and mark in "{}":
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    call.done = True
                    break
        else:
            # half an escape waits for its other half
            at = len(rest) - (self._in_string and rest[at:].endswith("\\"))
        if not at:
            return None
        piece, self._rest = rest[:at], rest[at:]
        call.arguments += piece
        return Piece(piece, len(self.calls) - 1)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that the tag begins with."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)
