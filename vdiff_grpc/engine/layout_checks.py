"""Checks how a prompt lies on its canvas: where it begins, its holes, what completes the last block."""

from __future__ import annotations

from vdiff_grpc.engine.prompt_types import (
    ChatPrompt,
    Hole,
    InfillPrompt,
    Prompt,
    TextPrompt,
    TokensPrompt,
)
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import AdaptiveParallel, Strategy
from vdiff_grpc.engine.types import AttentionPattern, ModelInfo, Span, SpanKind


def hole_ranges(prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """Shortest and longest of each hole; none where nothing is to be chosen."""
    segments = prompt.segments if isinstance(prompt, InfillPrompt) else ()
    ranges = tuple((s.shortest, s.longest) for s in segments if isinstance(s, Hole))
    return ranges if any(least < most for least, most in ranges) else ()


def check_beginning(
    prompt: Prompt, spans: list[Span], strategy: Strategy, info: ModelInfo, bad: Violations
) -> None:
    """What looks back to predict has nothing to look at before position 0."""
    needs_one = info.attention in (AttentionPattern.CAUSAL, AttentionPattern.CANVAS)
    if spans[0].kind is SpanKind.HOLE and (needs_one or isinstance(strategy, AdaptiveParallel)):
        who = f"the model {info.name}" if needs_one else strategy.NAME
        bad.add(
            prompt_field(prompt), f"{who} needs at least 1 token before the first hole, got none"
        )


def surplus(info: ModelInfo, given: int, num_new: int) -> int:
    """Positions beyond the answer that complete its last block."""
    if info.attention is AttentionPattern.CANVAS:  # its blocks begin where the prompt ends
        return -num_new % (info.block_length or 1)
    return -(given + num_new) % (info.block_length or 1)


def prompt_field(prompt: Prompt) -> str:
    match prompt:
        case TextPrompt():
            return "text"
        case TokensPrompt():
            return "token_ids.ids"
        case ChatPrompt():
            return "chat.messages"
        case InfillPrompt():
            return "infill.segments"
