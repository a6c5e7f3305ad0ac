"""Deadlines and callers who leave, counted in forward passes after the event; partial answers."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.conftest import RunningServer
from tests.server.calls import (
    MASK,
    PROMPT,
    Canvases,
    detail,
    generate,
    ids,
    long_spec,
    reason,
    spec,
    stream,
)
from tests.server.test_limits import begun, wait_for
from vdiff_grpc import v1

Serve = Callable[..., RunningServer]
PARTIAL = v1.FINISH_REASON_PARTIAL


def after(server: RunningServer, event_passes: int) -> int:
    """Forward passes since the event, once nothing runs; the probe's own four left out."""
    server.generation.Generate(generate(spec(max_new_tokens=4)))
    return server.statistics().forward_passes - 4 - event_passes


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_after_a_deadline_at_most_one_more_step_is_computed(serve: Serve, kind: str) -> None:
    server = serve(max_running_rows=1)
    asked = long_spec(n=8)
    if kind == "unary":
        call = server.generation.Generate.future(generate(asked), timeout=0.15)
    else:
        call = server.generation.StreamGenerate(stream(asked), timeout=0.15)
    with pytest.raises(grpc.RpcError) as ended:
        call.result() if kind == "unary" else list(call)
    server.wait_idle()
    # the caller's own clock has run out: what the engine had done by then or shortly after
    passes = server.statistics().forward_passes
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert after(server, passes) <= 1
    assert server.statistics().requests_aborted == 1


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_after_a_cancelled_call_at_most_one_more_step_is_computed(serve: Serve, kind: str) -> None:
    server = serve(max_running_rows=1)
    if kind == "unary":
        call = server.generation.Generate.future(generate(long_spec(n=8)))
        wait_for(server, lambda now: now.forward_passes > 3)
    else:
        call = begun(server, long_spec(n=8))
    call.cancel()
    server.wait_idle()  # the server has noticed
    passes = server.statistics().forward_passes
    assert after(server, passes) <= 1
    assert server.statistics().requests_aborted == 1


def test_a_request_whose_time_ends_in_the_queue_costs_no_step(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    first = begun(server, long_spec(n=8))
    with pytest.raises(grpc.RpcError) as ended:
        server.generation.Generate(generate(spec()), timeout=0.1)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    first.cancel()
    wait_for(server, lambda now: now.requests_aborted == 2)
    used = server.model.GetServerInfo(v1.GetServerInfoRequest()).usage
    assert [one.requests for one in used] == [2]
    assert used[0].forward_passes == server.statistics().forward_passes


def test_who_waits_too_long_is_refused_and_told_when_to_come_back(serve: Serve) -> None:
    server = serve(max_running_rows=1, max_queue_time_s=0.1)
    first = begun(server, long_spec(n=8))
    # n = 8: its own rows wait for one another, which is no waiting in the queue
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec()))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "QUEUE_TIMEOUT"
    assert "max_queue_time_s is 0.1" in refused.value.details()
    assert detail(refused.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert detail(refused.value, error_details_pb2.QuotaFailure).violations[0].subject == "rows"
    assert list(first)[-1].HasField("finished")


def partial(**sampling: object) -> v1.GenerationSpec:
    asked = long_spec(**sampling)
    asked.partial_on_deadline = True
    return asked


def test_a_partial_answer_comes_before_the_deadline_with_all_that_is_filled(
    serve: Serve,
) -> None:
    server = serve(max_running_rows=1)
    reply = server.generation.Generate(generate(partial(n=8)), timeout=0.4)
    assert [output.end.finish_reason for output in reply.outputs][-1] == PARTIAL
    whole = server.generation.Generate(generate(long_spec(n=8, seed=1)))
    for output, full in zip(reply.outputs, whole.outputs, strict=True):
        at = dict(zip(full.tokens.positions, full.tokens.ids, strict=True))
        tokens = output.tokens
        assert list(tokens.positions) == sorted(tokens.positions)
        assert [at[position] for position in tokens.positions] == list(tokens.ids)
        assert len(tokens.ids) == output.end.completion_tokens
        if output.end.finish_reason == PARTIAL:
            # one token a step: the canvas as it stood
            assert len(tokens.ids) == output.end.forward_passes
    assert server.statistics().requests_finished == 2
    assert server.statistics().requests_aborted == 0


def test_a_partial_stream_commits_what_is_filled_and_finishes(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    asked = stream(partial(n=8), v1.GRANULARITY_STEPS, stride=7)
    canvases = Canvases()
    for event in server.generation.StreamGenerate(asked, timeout=0.4):
        canvases.apply(event)
    assert canvases.finished is not None
    assert canvases.finished.ends[-1].finish_reason == PARTIAL
    for end in canvases.finished.ends:
        canvas = canvases.canvas.get(end.index, [*PROMPT, *[MASK] * 120])
        filled = [position for position, token in enumerate(canvas) if token != MASK]
        assert sorted(canvases.positions.get(end.index, [])) == filled[len(PROMPT) :]


def test_a_partial_answer_of_a_request_that_never_ran_is_empty(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    first = begun(server, long_spec(n=8))
    reply = server.generation.Generate(generate(partial()), timeout=0.15)
    assert reply.outputs[0].end.finish_reason == PARTIAL
    assert (ids(reply), reply.metrics.forward_passes) == ([[]], 0)
    assert 0 < reply.metrics.queue_time_ns <= reply.metrics.total_time_ns
    first.cancel()


def test_in_time_an_answer_is_whole_whether_or_not_a_part_would_do(server: RunningServer) -> None:
    asked = spec()
    asked.partial_on_deadline = True
    reply = server.generation.Generate(generate(asked), timeout=30)
    assert reply.outputs[0].end.finish_reason == v1.FINISH_REASON_LENGTH
    assert ids(reply) == ids(server.generation.Generate(generate(spec())))
