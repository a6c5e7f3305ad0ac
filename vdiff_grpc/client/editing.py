"""A finished answer as a document that can be opened again in places. Knows no channel.

    given = client.count_tokens("Tom had a red ball. He").token_ids
    ids = finished_ids(given, reply.outputs[0], client.model_info().mask_token_id)
    reply = client.generate(infill=reopen(ids, [(9, 12)]))

Positions are those of the canvas, as in Tokens.positions; position 0 is the first given token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vdiff_grpc import v1
from vdiff_grpc.client.requests import Segment

Reopened = tuple[int, int] | tuple[int, int, v1.Hole]


def finished_ids(given: Sequence[int], output: v1.Output, mask_token_id: int) -> list[int]:
    """Token ids of the whole canvas: what was given, what was generated, and its end token.

    given: CountTokensResponse.token_ids of the same input. Of a hole that a stop ended only what
    was generated is left. ValueError for a PARTIAL output, or one of another input.
    """
    if output.end.finish_reason == v1.FINISH_REASON_PARTIAL:
        raise ValueError("the output is PARTIAL: what is missing is not known to be a gap")
    generated = dict(zip(output.tokens.positions, output.tokens.ids, strict=True))
    ids: list[int] = []

    def fill() -> None:
        # each hole is filled from its beginning without a gap, whatever its length came to be
        while len(ids) in generated:
            ids.append(generated.pop(len(ids)))

    for token in given:
        if token == mask_token_id:
            fill()
        else:
            ids.append(token)
    fill()
    if generated:  # holes that grew: on the canvas they are as long as they may be
        places = dict(zip(output.tokens.positions, output.tokens.ids, strict=True))
        masks = {i for i, token in enumerate(given) if token == mask_token_id}
        if not places.keys() <= masks:
            raise ValueError(
                f"the output has tokens at {sorted(generated)}, where the input has none"
            )
        filled = (places.get(i, token) for i, token in enumerate(given))
        ids = [token for token in filled if token != mask_token_id]
    ends_with_hole = mask_token_id not in given or given[-1] == mask_token_id
    if output.end.HasField("stop_token_id") and ends_with_hole:
        ids.append(output.end.stop_token_id)
    return ids


def reopen(ids: Sequence[int], spans: Iterable[Reopened]) -> list[Segment]:
    """An infill template: the document with spans (begin, end) open again, all else frozen.

    A third entry is the hole that stands there instead of one as long as the span; with begin ==
    end it is put in between. ValueError when spans overlap or leave the document.
    """
    segments: list[Segment] = []
    position = 0
    for begin, end, *rest in sorted(spans, key=lambda span: span[:2]):
        if not position <= begin <= end <= len(ids):
            raise ValueError(
                f"span ({begin}, {end}) overlaps another or is not within the {len(ids)} tokens"
            )
        if begin == end and not rest:
            raise ValueError(f"span ({begin}, {end}) is empty and says no hole")
        if position < begin:
            segments.append(ids[position:begin])
        segments.append(rest[0] if rest else v1.Hole(length=end - begin))
        position = end
    if not segments:
        raise ValueError("no span is opened")
    if position < len(ids):
        segments.append(ids[position:])
    return segments


def characters(output: v1.Output, begin: int, end: int) -> tuple[int, int]:
    """The span of the tokens that hold characters [begin, end) of Output.text.

    ValueError when there are none, or when they lie in several holes.
    """
    tokens = output.tokens
    ends = [*tokens.text_offsets[1:], len(output.text)]
    held = [
        position
        for position, first, last in zip(tokens.positions, tokens.text_offsets, ends, strict=True)
        if first < end and begin < last
    ]
    if not held:
        raise ValueError(f"characters [{begin}, {end}) are not in a text of {len(output.text)}")
    if held[-1] - held[0] >= len(held):
        raise ValueError(f"characters [{begin}, {end}) lie in several holes")
    return held[0], held[-1] + 1
