"""Holes whose length is chosen, over real gRPC: Started waits for the choice and is then final."""

from __future__ import annotations

import pytest

from tests.conftest import RunningServer
from tests.server.calls import MASK, Canvases, generate, ids, spec, stream
from vdiff_grpc import v1

KINDS = [v1.SPAN_KIND_PROMPT, v1.SPAN_KIND_HOLE, v1.SPAN_KIND_FROZEN, v1.SPAN_KIND_HOLE]


def asked(request_id: str = "", **sampling: object) -> v1.GenerationSpec:
    made = spec(**sampling)
    made.sampling.ClearField("max_new_tokens")
    made.request_id = request_id
    made.infill.segments.extend(
        [
            v1.InfillSegment(token_ids=v1.TokenIds(ids=[1, 2, 3])),
            v1.InfillSegment(hole=v1.Hole(min_length=2, max_length=40)),
            v1.InfillSegment(token_ids=v1.TokenIds(ids=[4, 5])),
            v1.InfillSegment(hole=v1.Hole(max_length=9)),
        ]
    )
    return made


@pytest.mark.parametrize(
    "granularity", [v1.GRANULARITY_COMMITTED, v1.GRANULARITY_STEPS, v1.GRANULARITY_SNAPSHOTS]
)
@pytest.mark.parametrize("again", [False, True])
def test_the_layout_is_that_of_the_chosen_lengths(
    server: RunningServer, granularity: v1.Granularity, again: bool
) -> None:
    wanted = asked(f"chosen-{granularity}-{again}", n=2, temperature=1.0)
    unary = server.generation.Generate(generate(asked(n=2, temperature=1.0)))
    events = list(server.generation.StreamGenerate(stream(wanted, granularity)))
    if again:  # what was said is told to who comes later
        events = list(server.generation.StreamGenerate(stream(wanted, granularity)))
    assert [e.WhichOneof("event") for e in events].count("started") == 1
    started = events[0].started
    assert [span.kind for span in started.layout.spans] == KINDS
    given, first, frozen, last = (span.length for span in started.layout.spans)
    assert (given, frozen) == (3, 2)
    assert 2 <= first <= 40
    assert 1 <= last <= 9
    assert started.resolved.sampling.max_new_tokens == first + last
    assert unary.resolved.sampling.max_new_tokens == first + last
    assert started.prompt_tokens == unary.usage.prompt_tokens == 5
    canvases = Canvases()
    for event in events:
        canvases.apply(event)
    for index, tokens in enumerate(ids(unary)):
        assert canvases.committed[index] == tokens
        if granularity != v1.GRANULARITY_COMMITTED:
            canvas = canvases.canvas[index]
            assert canvas == [1, 2, 3, *tokens[:first], 4, 5, *tokens[first:]]
            assert MASK not in canvas
    assert canvases.finished is not None
    # 16 lengths of 39, up to 4 between the best one's neighbours, and 9 of the other hole
    over = [
        end.forward_passes - len(range(max(o.tokens.steps) + 1))
        for end, o in zip(canvases.finished.ends, unary.outputs, strict=True)
    ]
    assert 16 + 9 < over[0] <= 16 + 4 + 9
    assert over[1] == 0
    assert canvases.finished.metrics.forward_passes == unary.metrics.forward_passes


def test_counting_takes_the_longest_hole(server: RunningServer) -> None:
    count = server.model.CountTokens(v1.CountTokensRequest(infill=asked().infill))
    assert count.tokens == 5
    assert list(count.token_ids) == [1, 2, 3, *[MASK] * 40, 4, 5, *[MASK] * 9]
