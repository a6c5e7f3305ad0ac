"""Documents with several holes, as /v1/completions has them, to the contract's template and back.

Pure, no IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from vdiff_grpc import v1

from .formats import ResponseFormat, client_name, constraint_of

_UINT32 = 2**32 - 1
_Length = Annotated[int, Meta(ge=1, le=_UINT32)]


class InfillHole(Struct, kw_only=True):
    """Positions to fill: `length`, or from `min_length` to `max_length` by what fits."""

    length: _Length | None = None
    min_length: Annotated[_Length | None, Meta(description="Default 1. Needs max_length.")] = None
    max_length: _Length | None = None
    response_format: Annotated[
        ResponseFormat | None,
        Meta(description="As beside a prompt, of what fills this hole. So are the next two."),
    ] = None
    guided_regex: Annotated[str, Meta(max_length=32768)] | None = None
    guided_choice: (
        Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1024)]
        | None
    ) = None


InfillSegment = str | list[Annotated[int, Meta(ge=0, le=_UINT32)]] | InfillHole


def set_template(spec: v1.GenerationSpec, segments: Sequence[InfillSegment]) -> tuple[str, ...]:
    """The template as the spec's input. What each hole's constraint is called. Raises ApiError."""
    names = []
    spec.infill.SetInParent()
    for i, segment in enumerate(segments):
        added, name = spec.infill.segments.add(), ""
        if isinstance(segment, str):
            added.text = segment
        elif isinstance(segment, InfillHole):
            constraint, name = constraint_of(
                segment.response_format,
                segment.guided_regex,
                segment.guided_choice,
                f"infill[{i}].",
            )
            hole = v1.Hole(
                length=segment.length,
                min_length=segment.min_length,
                max_length=segment.max_length,
                constraint=constraint,
            )
            added.hole.CopyFrom(hole)
        else:
            added.token_ids.CopyFrom(v1.TokenIds(ids=segment))
        names.append(name)
    return tuple(names)


def segment_name(path: str, constraints: Sequence[str]) -> str:
    """The client's name of `infill.segments[1].hole.length` and its like.

    constraints: what set_template gave.
    """
    head, _, inner = path.removeprefix("infill").removeprefix(".segments").partition(".")
    inner = inner.removeprefix("hole").removeprefix(".")
    if inner.startswith("constraint"):
        return client_name(inner, constraints[int(head.strip("[]"))])
    # Of a segment that is text or token ids the field is the segment, or the id in it.
    inner = inner.removeprefix("text").removeprefix("token_ids").removeprefix(".ids")
    return f"infill{head}" + (inner if inner.startswith("[") or not inner else f".{inner}")
