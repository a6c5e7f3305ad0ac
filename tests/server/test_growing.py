"""Holes that grow, over real gRPC: Started comes at once, and every reader ends with one canvas."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.conftest import RunningServer, running, tiny_config
from tests.growth import growing_checkpoint
from tests.server.calls import MASK, generate, spec, stream, violations
from vdiff_grpc import v1
from vdiff_grpc.client import Client, finished_ids, hole
from vdiff_grpc.client.canvas import Canvas

PARTS = [[1, 2, 3], hole(min_length=2, max_length=12), [4, 5], hole(max_length=9), [6]]
LONGEST = 12 + 9


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = growing_checkpoint(tmp_path_factory.mktemp("growing"))
    with running(tiny_config(model=str(path))) as server:
        yield server


def asked(request_id: str = "", **diffusion: object) -> v1.GenerationSpec:
    made = spec(n=2, temperature=1.0)
    made.sampling.ClearField("max_new_tokens")
    made.diffusion.CopyFrom(v1.DiffusionParams(**diffusion))  # type: ignore[arg-type]
    made.request_id = request_id
    for part in PARTS:
        segment = made.infill.segments.add()
        if isinstance(part, v1.Hole):
            segment.hole.CopyFrom(part)
        else:
            segment.token_ids.ids.extend(part)
    return made


@pytest.mark.parametrize("granularity", [1, 2, 3], ids=["committed", "steps", "snapshots"])
@pytest.mark.parametrize("again", [False, True])
def test_a_reader_ends_with_the_canvas_of_the_reply(
    growing: RunningServer, granularity: int, again: bool
) -> None:
    unary = growing.generation.Generate(generate(asked()))
    wanted = asked(f"growing-{granularity}-{again}")
    events = list(growing.generation.StreamGenerate(stream(wanted, granularity)))
    if again:  # what was said is told to who comes later
        events = list(growing.generation.StreamGenerate(stream(wanted, granularity)))
    started = events[0].started
    assert [span.length for span in started.layout.spans] == [3, 12, 2, 9, 1]
    for resolved in (started.resolved, unary.resolved):
        assert resolved.sampling.max_new_tokens == LONGEST
        assert resolved.diffusion.hole_lengths == v1.HOLE_LENGTHS_NATIVE
        assert not resolved.diffusion.HasField("steps")
    canvas = Canvas()
    for event in events:
        canvas.apply(event)
    assert canvas.finished is not None
    assert canvas.finished.usage == unary.usage
    for output, seen in zip(unary.outputs, canvas.outputs, strict=True):
        expected = [1, 2, 3, *[MASK] * 12, 4, 5, *[MASK] * 9, 6]
        for position, token in zip(output.tokens.positions, output.tokens.ids, strict=True):
            expected[position] = token
        if granularity == v1.GRANULARITY_COMMITTED:  # given tokens are not told
            expected = [
                e if i in output.tokens.positions or e == MASK else -1
                for i, e in enumerate(expected)
            ]
        assert seen.token_ids == expected
        assert seen.num_masked == LONGEST - len(output.tokens.ids)
        assert output.end.completion_tokens == len(output.tokens.ids)
    assert unary.outputs[0].tokens != unary.outputs[1].tokens
    assert unary.usage.completion_tokens < 2 * LONGEST


def test_what_was_used_can_be_sent_again(growing: RunningServer) -> None:
    first = growing.generation.Generate(generate(asked()))
    wanted = asked()
    wanted.diffusion.CopyFrom(first.resolved.diffusion)
    wanted.sampling.CopyFrom(first.resolved.sampling)
    wanted.sampling.ClearField("max_new_tokens")  # holes have their lengths
    again = growing.generation.Generate(generate(wanted))
    assert again.outputs == first.outputs
    assert again.resolved == first.resolved


def test_a_document_is_put_together_with_the_holes_as_long_as_they_came_to_be(
    growing: RunningServer,
) -> None:
    with Client(growing.address) as client:
        info = client.model_info()
        assert info.grows_holes
        given = client.count_tokens(infill=PARTS).token_ids
        for seed in range(6):
            reply = client.generate(infill=PARTS, seed=seed, temperature=1.0)
            tokens = reply.outputs[0].tokens
            first = [t for t, p in zip(tokens.ids, tokens.positions, strict=True) if p < 15]
            last = list(tokens.ids[len(first) :])
            ids = finished_ids(given, reply.outputs[0], info.mask_token_id)
            assert ids == [1, 2, 3, *first, 4, 5, *last, 6]
        with pytest.raises(ValueError, match="where the input has none"):
            finished_ids([1, 2, 3, 96, 96, 4, 5], reply.outputs[0], info.mask_token_id)


def test_growth_is_refused_by_the_fields_path(server: RunningServer) -> None:
    assert not server.model.GetModelInfo(v1.GetModelInfoRequest()).grows_holes
    for value, says in ((v1.HOLE_LENGTHS_NATIVE, "no expand and delete"), (7, "(7) is unknown")):
        with pytest.raises(grpc.RpcError) as caught:
            server.generation.Generate(generate(asked(hole_lengths=value)))
        assert says in violations(caught.value)["spec.diffusion.hole_lengths"]
    chosen = server.generation.Generate(generate(asked(hole_lengths=v1.HOLE_LENGTHS_CONFIDENCE)))
    said_nothing = server.generation.Generate(generate(asked()))
    assert [o.tokens for o in chosen.outputs] == [o.tokens for o in said_nothing.outputs]
    assert chosen.resolved.diffusion.hole_lengths == v1.HOLE_LENGTHS_CONFIDENCE
