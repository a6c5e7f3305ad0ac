"""Limits on rows and time, and callers who leave: counted in forward passes."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.conftest import RunningServer
from tests.server.calls import Canvases, detail, generate, ids, long_spec, reason, spec, stream
from vdiff_grpc import v1

Serve = Callable[..., RunningServer]


def wait_for(server: RunningServer, condition: Callable[[v1.Statistics], bool]) -> v1.Statistics:
    """Asks until the counters say so; the test's own time limit ends it otherwise."""
    while True:
        statistics = server.statistics()
        if condition(statistics):
            return statistics


def begun(server: RunningServer, asked: v1.GenerationSpec) -> grpc.Call:
    """A stream whose first step has been made."""
    call = server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS))
    assert next(call).HasField("started")
    assert next(call).HasField("step_update")
    return call


def assert_nothing_else_runs(server: RunningServer, before: v1.Statistics) -> None:
    """The next request's forward passes are the only ones since `before`."""
    server.generation.Generate(generate(spec(max_new_tokens=4)))
    assert server.statistics().forward_passes - before.forward_passes == 4


def test_the_row_beyond_the_limit_waits_until_one_leaves(serve: Serve) -> None:
    server = serve(max_running_rows=1, max_waiting_rows=8)
    alone = ids(server.generation.Generate(generate(spec())))
    first = begun(server, long_spec(n=4))
    second = server.generation.Generate.future(generate(spec()))
    waiting = wait_for(server, lambda now: now.waiting_rows == 4)
    assert waiting.running_rows == 1
    first.cancel()
    reply = second.result()
    assert ids(reply) == alone
    assert reply.metrics.queue_time_ns > 0
    now = wait_for(server, lambda now: now.running_rows == 0)
    assert (now.waiting_rows, now.requests_aborted, now.requests_finished) == (0, 1, 2)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(serve: Serve) -> None:
    server = serve(max_running_rows=1, max_waiting_rows=4, max_n=4)
    first = begun(server, long_spec(n=4))
    second = server.generation.StreamGenerate(stream(spec()))
    assert next(second).HasField("started")
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec()))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "QUEUE_FULL"
    assert "max_waiting_rows 4" in refused.value.details()
    retry = detail(refused.value, error_details_pb2.RetryInfo).retry_delay
    assert 0 < retry.ToMilliseconds() <= 30_000
    quota = detail(refused.value, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "rows"
    assert server.statistics().requests_refused == 1
    first.cancel()
    assert list(second)[-1].HasField("finished")
    server.generation.Generate(generate(spec()))


def test_a_request_of_many_rows_is_refused_when_only_some_would_fit(serve: Serve) -> None:
    server = serve(max_running_rows=2, max_waiting_rows=3, max_n=4)
    first = begun(server, long_spec(n=3))
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec(n=3)))
    assert reason(refused.value) == "QUEUE_FULL"
    fitting = server.generation.Generate(generate(spec(n=2)))
    assert len(fitting.outputs) == 2
    first.cancel()


def test_a_time_out_ends_a_request_within_one_step(serve: Serve) -> None:
    server = serve(max_running_rows=1, max_request_time_s=0.1)
    with pytest.raises(grpc.RpcError) as ended:
        list(begun(server, long_spec(n=8)))
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason(ended.value) == "REQUEST_TIMEOUT"
    now = server.statistics()
    assert (now.running_rows, now.waiting_rows) == (0, 0)
    assert now.requests_aborted == 1
    assert_nothing_else_runs(server, now)


def test_a_callers_deadline_frees_its_rows(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    with pytest.raises(grpc.RpcError) as ended:
        server.generation.Generate(generate(long_spec(n=8)), timeout=0.1)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    now = wait_for(server, lambda now: now.requests_aborted == 1 and now.running_rows == 0)
    assert now.waiting_rows == 0
    assert_nothing_else_runs(server, now)


def test_cancelling_a_stream_frees_its_rows(serve: Serve) -> None:
    server = serve(max_running_rows=2)
    call = begun(server, long_spec(n=8))
    call.cancel()
    now = wait_for(server, lambda now: now.requests_aborted == 1 and now.running_rows == 0)
    assert now.waiting_rows == 0
    assert now.forward_passes < 8 * 120
    assert_nothing_else_runs(server, now)


def test_cancelling_a_unary_call_frees_its_rows(serve: Serve) -> None:
    server = serve(max_running_rows=2)
    call = server.generation.Generate.future(generate(long_spec(n=8)))
    wait_for(server, lambda now: now.running_rows == 2)
    call.cancel()
    now = wait_for(server, lambda now: now.requests_aborted == 1 and now.running_rows == 0)
    assert_nothing_else_runs(server, now)


def test_a_slow_reader_gets_snapshots_and_ends_with_the_right_canvas(serve: Serve) -> None:
    server = serve(max_pending_events=4)
    asked = long_spec(n=8, temperature=1.0)
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with grpc.insecure_channel(server.address, options=small_window) as channel:
        call = v1.GenerationServiceStub(channel).StreamGenerate(stream(asked, v1.GRANULARITY_STEPS))
        canvases = Canvases()
        canvases.apply(next(call))
        wait_for(server, lambda now: now.requests_finished == 1)
        for event in call:
            canvases.apply(event)
    assert canvases.snapshots > 0
    assert canvases.updates < 8 * 120
    reply = server.generation.Generate(generate(asked))
    for index, tokens in enumerate(ids(reply)):
        assert canvases.canvas[index][4:] == tokens
        assert canvases.committed[index] == tokens
