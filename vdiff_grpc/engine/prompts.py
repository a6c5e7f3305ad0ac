"""Prompts to canvases: tokenises what is given and lays out what is open."""

from __future__ import annotations

from collections.abc import Sequence

from vdiff_grpc.engine.prompt_types import (
    ChatPrompt,
    Hole,
    InfillPrompt,
    Prompt,
    TextPrompt,
    TokensPrompt,
)
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import ModelInfo, Span, SpanKind
from vdiff_grpc.errors import FieldViolation, InvalidRequestError

MAX_SEGMENTS = 256
MAX_OPEN_LENGTHS = 16  # holes whose length is to be chosen


class Violations:
    """Collects what is wrong with one request."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self.found.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        if self.found:
            raise InvalidRequestError(self.found)


def lay_out(
    prompt: Prompt,
    info: ModelInfo,
    tokenizer: Tokenizer | None,
    num_new: int,
    bad: Violations,
) -> tuple[list[int], list[Span]]:
    """The canvas (mask id in holes) and its spans.

    num_new: positions to generate; a template's holes have their own lengths, here the longest.
    What is wrong is added to `bad`, and the canvas is then of no use.
    """
    match prompt:
        case TextPrompt(text, None):
            ids = [*info.prefix_ids, *_encode_text(text, "text", info, tokenizer, bad)]
            return _continuation(ids, "text", num_new, info, bad, info.suffix_ids)
        case TokensPrompt(ids_given):
            ids = _check_ids(ids_given, "token_ids.ids", info, bad)
            return _continuation(ids, "token_ids.ids", num_new, info, bad)
        case ChatPrompt(messages, tools):
            if not messages:
                bad.add("chat.messages", "chat.messages is empty; at least 1 message is needed")
                return [], []
            ids = []
            if tokenizer is None or not tokenizer.has_chat_template:
                bad.add(
                    "chat", f"the model {info.name} has no chat template: send text or token ids"
                )
                return [], []
            try:
                ids = tokenizer.encode_chat(messages, tools if prompt.may_call else ())
            except ValueError as error:
                bad.add("chat.messages", f"chat.messages: {error}")
            _refuse_masks(ids, "chat.messages", info, bad)
            return _continuation(ids, "chat.messages", num_new, info, bad)
        case TextPrompt(text, str(suffix)):
            return _template(
                [text, Hole(num_new), suffix], ["text", "", "suffix"], info, tokenizer, bad
            )
    assert isinstance(prompt, InfillPrompt)
    paths = [f"infill.segments[{i}]" for i in range(len(prompt.segments))]
    return _template(list(prompt.segments), paths, info, tokenizer, bad)


def _continuation(
    ids: list[int],
    field: str,
    num_new: int,
    info: ModelInfo,
    bad: Violations,
    after: tuple[int, ...] = (),
) -> tuple[list[int], list[Span]]:
    """after: what the model wants at a text's end."""
    if not ids and not bad.found:
        bad.add(field, f"{field} is empty; at least 1 token is needed")
    spans = [Span(SpanKind.PROMPT, len(ids)), Span(SpanKind.HOLE, num_new)]
    if after:
        spans.append(Span(SpanKind.FROZEN, len(after)))
    return [*ids, *[info.blank_id] * num_new, *after], spans


def _template(
    segments: list[str | tuple[int, ...] | Hole],
    paths: list[str],
    info: ModelInfo,
    tokenizer: Tokenizer | None,
    bad: Violations,
) -> tuple[list[int], list[Span]]:
    """Adjacent given segments join in one span; adjacent holes stay holes of their own.

    What the model wants around a text stands around the template, unless token ids are among
    its segments: then it is taken as it is. Where only the beginning is marked, a template that
    begins with a hole has no beginning to mark.
    """
    first = paths[0].partition("[")[0] if paths else "infill.segments"
    holes = sum(isinstance(s, Hole) for s in segments)
    if not holes:
        bad.add(first, f"{first} has no hole to fill")
    if len(segments) > MAX_SEGMENTS:
        bad.add(first, f"{first} has {len(segments)} segments; the limit is {MAX_SEGMENTS}")
        return [], []
    open_lengths = sum(isinstance(s, Hole) and s.shortest < s.longest for s in segments)
    if open_lengths > MAX_OPEN_LENGTHS:
        bad.add(
            first,
            f"{first} has {open_lengths} holes whose length is to be chosen; the limit is "
            f"{MAX_OPEN_LENGTHS}",
        )
    canvas: list[int] = []
    spans: list[Span] = []

    def give(ids: Sequence[int]) -> None:
        if not ids:
            return
        kind = SpanKind.FROZEN if any(s.kind is SpanKind.HOLE for s in spans) else SpanKind.PROMPT
        canvas.extend(ids)
        if spans and spans[-1].kind is kind:
            spans[-1] = Span(kind, spans[-1].length + len(ids))
        else:
            spans.append(Span(kind, len(ids)))

    before, after = info.prefix_ids, info.suffix_ids
    if info.growth is not None:
        before, after = info.growth.before, info.growth.after
    framed = bool(after) and not any(isinstance(s, tuple) for s in segments)
    if framed or (not after and isinstance(next(iter(segments), None), str)):
        give(before)
    for segment, path in zip(segments, paths, strict=True):
        if len(canvas) > info.max_positions:
            bad.add(
                path,
                f"{path}: the canvas ({len(canvas)} tokens before it) exceeds the model's limit "
                f"({info.max_positions})",
            )
            return [], []
        if isinstance(segment, Hole):
            if _check_hole(segment, f"{path}.hole", info, bad):
                canvas += [info.blank_id] * segment.longest
                spans.append(Span(SpanKind.HOLE, segment.longest))
            continue
        if isinstance(segment, str):
            field = path if path in ("text", "suffix") else f"{path}.text"
            give(_encode_text(segment, field, info, tokenizer, bad))
        else:
            give(_check_ids(segment, f"{path}.token_ids.ids", info, bad))
    if any(s.kind is SpanKind.FROZEN for s in spans) and not info.supports_infill:
        bad.add(
            "suffix" if "suffix" in paths else "infill",
            f"the model {info.name} cannot see text after a hole",
        )
    if framed:
        give(after)
    return canvas, spans


def _check_hole(hole: Hole, path: str, info: ModelInfo, bad: Violations) -> bool:
    """Whether the canvas can have it."""
    least, most = hole.min_length, hole.max_length
    if hole.length and (least, most) != (None, None):
        what = f"hole length ({hole.length}) cannot be set with min_length or max_length"
        bad.add(f"{path}.length", what)
        return False
    if least is not None and most is None:
        bad.add(f"{path}.min_length", f"min_length ({least}) needs max_length")
        return False
    if not 1 <= hole.longest <= info.max_positions:
        name, shown = ("length", "hole length") if most is None else ("max_length",) * 2
        bad.add(f"{path}.{name}", f"{shown} ({hole.longest}) is not in [1, {info.max_positions}]")
        return False
    if least is not None and not 1 <= least <= hole.longest:
        bad.add(f"{path}.min_length", f"min_length ({least}) is not in [1, {hole.longest}]")
        return False
    if hole.shortest < hole.longest and not info.supports_infill:
        bad.add(
            f"{path}.max_length",
            f"the model {info.name} cannot choose a hole's length: it cannot see what follows",
        )
    return True


def _encode_text(
    text: str,
    field: str,
    info: ModelInfo,
    tokenizer: Tokenizer | None,
    bad: Violations,
) -> list[int]:
    if tokenizer is None:
        bad.add(field, f"{field}: the model {info.name} has no tokenizer: send token ids")
        return []
    # spares the work on a text of megabytes: a token has only so many bytes
    least = len(text.encode("utf-8", "replace")) // tokenizer.max_token_bytes
    if least > info.max_positions:
        bad.add(
            field,
            f"{field} has at least {least} tokens, more than the model's {info.max_positions} positions",
        )
        return []
    ids = tokenizer.encode(text)
    _refuse_masks(ids, field, info, bad)
    return ids


def _refuse_masks(ids: list[int], field: str, info: ModelInfo, bad: Violations) -> None:
    if info.mask_token_id in ids:
        bad.add(
            field,
            f"{field} contains the mask token (id {info.mask_token_id}); "
            "open positions are holes of an infill template",
        )


def _check_ids(ids: tuple[int, ...], field: str, info: ModelInfo, bad: Violations) -> list[int]:
    for index, token in enumerate(ids):
        if not 0 <= token < info.vocab_size:
            bad.add(
                f"{field}[{index}]",
                f"token id ({token}) is not in the vocabulary of {info.vocab_size}",
            )
            return []
    _refuse_masks(list(ids), field, info, bad)
    return list(ids)
