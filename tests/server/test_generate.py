"""What callers get, over real gRPC, from the tiny checkpoint."""

from __future__ import annotations

import pytest

from tests.conftest import RunningServer
from tests.server.calls import MASK, PROMPT, Canvases, generate, ids, spec, stream
from vdiff_grpc import v1
from vdiff_grpc.engine.strategies import STRATEGIES


def test_a_unary_call_answers_with_tokens_usage_metrics_and_resolved_parameters(
    server: RunningServer,
) -> None:
    reply = server.generation.Generate(generate(spec(n=2, seed=7)))
    assert (reply.model, len(reply.model_revision) > 0) == ("tiny", True)
    assert [output.index for output in reply.outputs] == [0, 1]
    for output in reply.outputs:
        assert len(output.tokens.ids) == len(output.tokens.steps) == 16
        assert list(output.tokens.positions) == list(range(4, 20))
        assert sorted(output.tokens.steps) == list(range(16))
        assert output.end.finish_reason == v1.FINISH_REASON_LENGTH
        assert output.end.WhichOneof("stop_match") is None
        assert (output.end.forward_passes, output.end.completion_tokens) == (16, 16)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 32)
    metrics = reply.metrics
    assert (metrics.forward_passes, metrics.steps, metrics.blocks) == (32, 32, 2)
    assert (metrics.remasked, metrics.revised) == (0, 0)
    assert metrics.tokens_per_forward == 1.0
    assert 0 < metrics.time_to_first_commit_ns <= metrics.total_time_ns
    resolved = reply.resolved
    assert (resolved.sampling.seed, resolved.sampling.n, resolved.sampling.top_p) == (7, 2, 1.0)
    assert resolved.diffusion.block_length == 16
    assert not resolved.diffusion.HasField("steps")
    assert resolved.diffusion.entropy_bound.bound == 0.05


def test_steps_without_a_strategy_ask_for_the_schedule(server: RunningServer) -> None:
    reply = server.generation.Generate(generate(spec(diffusion={"steps": 8})))
    assert reply.metrics.steps == reply.resolved.diffusion.steps == 8
    resolved = reply.resolved.diffusion.fixed_schedule
    assert resolved.remasking == v1.REMASKING_ORDER_LOW_CONFIDENCE


def test_each_of_n_answers_comes_again_from_its_own_seed(server: RunningServer) -> None:
    many = server.generation.Generate(generate(spec(n=3, temperature=1.0, seed=5)))
    assert len({tuple(answer) for answer in ids(many)}) == 3
    for output in many.outputs:
        alone = server.generation.Generate(generate(spec(temperature=1.0, seed=output.end.seed)))
        assert ids(alone) == [list(output.tokens.ids)]


def test_a_seed_that_was_drawn_is_reported_and_gives_the_answer_again(
    server: RunningServer,
) -> None:
    asked = spec(temperature=1.0)
    asked.sampling.ClearField("seed")
    reply = server.generation.Generate(generate(asked))
    again = server.generation.Generate(
        generate(spec(temperature=1.0, seed=reply.resolved.sampling.seed))
    )
    assert ids(again) == ids(reply)


@pytest.mark.parametrize("stride", [1, 3])
def test_applying_all_updates_gives_the_final_canvas(server: RunningServer, stride: int) -> None:
    asked = spec(n=2, temperature=1.0, max_new_tokens=20)
    canvases = Canvases()
    events = list(
        server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS, stride=stride))
    )
    for event in events:
        canvases.apply(event)
    assert [events[0].WhichOneof("event"), events[-1].WhichOneof("event")] == [
        "started",
        "finished",
    ]
    assert canvases.finished is not None
    assert [end.index for end in canvases.finished.ends] == [0, 1]
    reply = server.generation.Generate(generate(asked))
    for index, tokens in enumerate(ids(reply)):
        assert canvases.canvas[index] == PROMPT + tokens
        assert canvases.committed[index] == tokens
    assert canvases.finished.usage == reply.usage


def test_positions_arrive_out_of_order(server: RunningServer) -> None:
    positions: list[int] = []
    for event in server.generation.StreamGenerate(stream(spec(), v1.GRANULARITY_STEPS)):
        positions.extend(event.step_update.positions)
    assert sorted(positions) == list(range(4, 20)) != positions


def test_by_default_a_stream_is_committed_text_only(server: RunningServer) -> None:
    events = list(server.generation.StreamGenerate(stream(spec())))
    kinds = {event.WhichOneof("event") for event in events}
    assert kinds == {"started", "committed", "finished"}
    layout = events[0].started.layout
    assert [(span.kind, span.length) for span in layout.spans] == [
        (v1.SPAN_KIND_PROMPT, 4),
        (v1.SPAN_KIND_HOLE, 16),
    ]
    assert (list(layout.token_ids), layout.mask_token_id) == ([], MASK)


def test_snapshots_show_the_whole_canvas(server: RunningServer) -> None:
    canvases = Canvases()
    request = stream(spec(), v1.GRANULARITY_SNAPSHOTS, stride=4)
    for event in server.generation.StreamGenerate(request):
        canvases.apply(event)
    assert canvases.snapshots == 4
    assert canvases.canvas[0] == PROMPT + canvases.committed[0]


def test_an_infill_template_keeps_what_is_given(server: RunningServer) -> None:
    asked = spec()
    asked.sampling.ClearField("max_new_tokens")
    asked.infill.segments.extend(
        [
            v1.InfillSegment(token_ids=v1.TokenIds(ids=[1, 2, 3])),
            v1.InfillSegment(hole=v1.Hole(length=3)),
            v1.InfillSegment(token_ids=v1.TokenIds(ids=[4, 5])),
            v1.InfillSegment(hole=v1.Hole(length=2)),
        ]
    )
    canvases = Canvases()
    for event in server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS)):
        canvases.apply(event)
    canvas = canvases.canvas[0]
    assert (canvas[:3], canvas[6:8], len(canvas)) == ([1, 2, 3], [4, 5], 10)
    assert MASK not in canvas
    assert sorted(canvases.positions[0]) == [3, 4, 5, 8, 9]


def test_a_request_id_comes_back_from_the_message_else_the_metadata_else_is_made(
    server: RunningServer,
) -> None:
    def ask(name: str, *metadata: tuple[str, str]) -> tuple[str, str]:
        asked = spec(max_new_tokens=1)
        asked.request_id = name
        reply, call = server.generation.Generate.with_call(generate(asked), metadata=metadata)
        return reply.request_id, dict(call.initial_metadata())["x-request-id"]

    assert ask("mine", ("x-request-id", "other")) == ("mine", "mine")
    assert ask("", ("x-request-id", "other")) == ("other", "other")
    made, returned = ask("")
    assert made == returned != ask("")[0]
    call = server.generation.StreamGenerate(
        stream(spec(max_new_tokens=1)), metadata=(("x-request-id", "streamed"),)
    )
    assert next(iter(call)).started.request_id == "streamed"
    assert dict(call.initial_metadata())["x-request-id"] == "streamed"


def test_the_model_answers_to_its_aliases(server: RunningServer) -> None:
    asked = spec(max_new_tokens=1)
    asked.model = "tiny-alias"
    assert server.generation.Generate(generate(asked)).model == "tiny"


def test_model_info_tells_capabilities_limits_and_defaults(server: RunningServer) -> None:
    info = server.model.GetModelInfo(v1.GetModelInfoRequest())
    assert (info.model, list(info.aliases), info.family) == ("tiny", ["tiny-alias"], "llada")
    assert info.attention == v1.ATTENTION_PATTERN_FULL
    assert info.cache == v1.CACHE_POLICY_NONE
    assert (info.vocab_size, info.mask_token_id, list(info.end_token_ids)) == (97, MASK, [95])
    assert (info.has_tokenizer, info.has_chat_template, info.supports_infill) == (
        False,
        False,
        True,
    )
    # it has no auxiliary model, and masks, not noise
    assert set(info.strategies) == set(STRATEGIES) - {"adaptive_parallel", "uniform_noise"}
    assert not info.HasField("block_length")
    assert info.auxiliary_model == ""
    assert (info.limits.max_canvas_tokens, info.limits.max_running_rows) == (128, 32)
    assert info.limits.max_request_time.ToSeconds() == 600
    assert info.defaults.sampling.max_new_tokens == 128
    assert not info.defaults.sampling.HasField("seed")


def test_server_info_counts_what_was_done(server: RunningServer) -> None:
    before = server.statistics()
    server.generation.Generate(generate(spec(n=2, max_new_tokens=8)))
    info = server.model.GetServerInfo(v1.GetServerInfoRequest())
    now = info.statistics
    assert (info.state, info.device, info.dtype) == (v1.ENGINE_STATE_READY, "cpu", "float32")
    assert info.uptime.ToNanoseconds() > 0
    assert now.requests - before.requests == 1
    assert now.requests_finished - before.requests_finished == 1
    assert now.prompt_tokens - before.prompt_tokens == 4
    assert now.completion_tokens - before.completion_tokens == 16
    assert now.forward_passes - before.forward_passes == 16
    assert now.engine_steps - before.engine_steps == 8
    assert (now.running_rows, now.waiting_rows) == (0, 0)


def test_tokens_are_counted_without_the_holes(server: RunningServer) -> None:
    request = v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[1, 2, 3]))
    reply = server.model.CountTokens(request)
    assert (reply.tokens, list(reply.token_ids)) == (3, [1, 2, 3])
    request.infill.segments.extend(
        [
            v1.InfillSegment(token_ids=v1.TokenIds(ids=[1])),
            v1.InfillSegment(hole=v1.Hole(length=2)),
        ]
    )
    reply = server.model.CountTokens(request)
    assert (reply.tokens, list(reply.token_ids)) == (1, [1, MASK, MASK])
