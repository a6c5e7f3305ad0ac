"""How a canvas filled in, from the contract's messages to JSON's `diffusion`: pure, no IO."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET

from vdiff_grpc import v1

from . import openai_replies as openai

_SPAN_KINDS: dict[int, openai.SpanKind] = {
    v1.SPAN_KIND_PROMPT: "prompt",
    v1.SPAN_KIND_FROZEN: "frozen",
    v1.SPAN_KIND_HOLE: "hole",
    v1.SPAN_KIND_SURPLUS: "surplus",
}
_UPDATES: dict[
    int, type[openai.DiffusionUnmask | openai.DiffusionRevise | openai.DiffusionRemask]
] = {
    v1.UPDATE_KIND_UNMASK: openai.DiffusionUnmask,
    v1.UPDATE_KIND_REVISE: openai.DiffusionRevise,
    v1.UPDATE_KIND_REMASK: openai.DiffusionRemask,
}


def of_choice(index: int, output: v1.Output, hurried: bool) -> openai.ChoiceDiffusion:
    """Of an answer that came whole. index: the choice's."""
    tokens, end = output.tokens, output.end
    changes = [step(index, update) for update in output.trajectory]
    return openai.ChoiceDiffusion(
        end.seed,
        end.forward_passes,
        list(tokens.positions),
        list(tokens.ids),
        list(tokens.steps),
        _rounded(tokens.confidences),
        round(end.score, 6) if end.HasField("score") else UNSET,
        changes or UNSET,
        hurried or UNSET,
    )


def start(index: int, layout: v1.CanvasLayout) -> openai.DiffusionStart:
    return openai.DiffusionStart(
        index,
        list(layout.token_ids),
        layout.mask_token_id,
        [openai.CanvasSpan(_SPAN_KINDS[span.kind], span.length) for span in layout.spans],
        list(layout.texts),
    )


def step(index: int, update: v1.StepUpdate) -> openai.DiffusionChange:
    change = _UPDATES[update.kind](
        index,
        update.step,
        update.block,
        update.forward_passes,
        list(update.positions),
        list(update.token_ids),
        list(update.texts),
        _rounded(update.confidences),
    )
    if update.hurried and isinstance(change, openai.DiffusionUnmask):
        return msgspec.structs.replace(change, hurried=True)
    return change


def end(index: int, end: v1.OutputEnd, hurried: bool) -> openai.DiffusionEnd:
    return openai.DiffusionEnd(index, end.seed, end.forward_passes, hurried or UNSET)


def snapshot(index: int, snapshot: v1.CanvasSnapshot) -> openai.DiffusionSnapshot:
    return openai.DiffusionSnapshot(
        index,
        snapshot.step,
        snapshot.block,
        snapshot.forward_passes,
        list(range(len(snapshot.token_ids))),
        list(snapshot.token_ids),
        _rounded(snapshot.confidences),
        list(snapshot.texts),
    )


def _rounded(confidences: Iterable[float]) -> list[float]:
    # A float32 has seven digits; as a double it would be written with seventeen.
    return [round(confidence, 6) for confidence in confidences]
