"""What one caller and all together may hold; slow readers. Health is answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import RunningServer
from tests.server.calls import detail, generate, ids, long_spec, reason, spec, stream
from tests.server.test_limits import begun, wait_for
from tests.server.test_request_stream import committed, resolved, step
from vdiff_grpc import v1
from vdiff_grpc.errors import CallerLimitError
from vdiff_grpc.server.admission import Admission, AdmissionLimits
from vdiff_grpc.server.request_stream import RequestStream

Serve = Callable[..., RunningServer]


def assert_healthy(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    service = "vdiff.v1.GenerationService"
    reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def refused_at_once(server: RunningServer, asked: v1.GenerationSpec) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(asked), timeout=5)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = detail(refused.value, error_details_pb2.RetryInfo).retry_delay
    assert 0 < retry.ToMilliseconds() <= 30_000
    assert_healthy(server)
    return refused.value


def test_a_caller_with_too_many_open_calls_is_refused_until_one_ends(serve: Serve) -> None:
    server = serve(max_calls_per_caller=2, max_running_rows=1)
    calls = [begun(server, long_spec(n=8)), server.generation.StreamGenerate(stream(spec()))]
    assert next(calls[1]).HasField("started")
    error = refused_at_once(server, spec())
    assert reason(error) == "CALLER_LIMIT"
    assert "max_calls_per_caller 2" in error.details()
    assert detail(error, error_details_pb2.QuotaFailure).violations[0].subject == "calls"
    assert server.statistics().requests_refused == 1
    calls[0].cancel()
    assert list(calls[1])[-1].HasField("finished")
    server.wait_idle()
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16


def test_a_refused_request_holds_no_place(serve: Serve) -> None:
    server = serve(max_calls_per_caller=1, max_tokens_in_flight=400, max_waiting_rows=0)
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            server.generation.Generate(generate(spec(temperature=9.0)))
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16


def test_tokens_in_flight_are_bounded_whoever_holds_them(serve: Serve) -> None:
    server = serve(max_tokens_in_flight=1000, max_running_rows=1)
    first = begun(server, long_spec(n=8))  # 8 * (4 + 120)
    error = refused_at_once(server, spec())
    assert reason(error) == "CALLER_LIMIT"
    assert "20 more canvas tokens beside 992 (max_tokens_in_flight 1000)" in error.details()
    assert detail(error, error_details_pb2.QuotaFailure).violations[0].subject == "tokens"
    first.cancel()
    server.wait_idle()
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16


def test_calls_are_counted_for_each_caller_alone() -> None:
    admission = Admission(AdmissionLimits(1, 1, max_calls_per_caller=1))
    admission.open_call("one")
    admission.open_call("other")
    with pytest.raises(CallerLimitError):
        admission.open_call("one")
    admission.close_call("one")
    admission.open_call("one")


def test_the_limits_are_told(serve: Serve) -> None:
    server = serve(
        max_calls_per_caller=2,
        max_tokens_in_flight=3,
        max_queue_time_s=4.0,
        request_id_window_s=5.0,
        max_message_bytes=4096,
        ready=False,
    )
    limits = server.model.GetModelInfo(v1.GetModelInfoRequest()).limits
    assert (limits.max_calls_per_caller, limits.max_tokens_in_flight) == (2, 3)
    assert (limits.max_queue_time.seconds, limits.request_id_window.seconds) == (4, 5)
    assert (limits.max_message_bytes, limits.max_template_segments) == (4096, 256)
    assert limits.max_prompt_tokens == limits.max_canvas_tokens - 1 == 127


async def test_what_waits_for_a_slow_reader_does_not_grow_with_the_number_of_steps() -> None:
    reader = RequestStream(1, resolved(), 4, lambda _: None)
    for number in range(100_000):
        reader.push(step(0, number, 1 + number % 12, number % 90))
    for position in range(1, 13):
        reader.push(committed(0, position, position))
    assert len(reader._pending) + len(reader._backlogs) <= 4
    assert sum(len(backlog.committed) for backlog in reader._backlogs.values()) == 12
    await asyncio.sleep(0)
    assert (await anext(reader)).step == 99_999  # type: ignore[union-attr]


def test_a_reader_that_reads_nothing_slows_nobody(serve: Serve) -> None:
    server = serve(max_pending_events=4, max_running_rows=8)
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with grpc.insecure_channel(server.address, options=small_window) as channel:
        stuck = v1.GenerationServiceStub(channel).StreamGenerate(
            stream(long_spec(n=8), v1.GRANULARITY_SNAPSHOTS)
        )
        # its steps go on, and so do another's, whether or not anyone reads
        reply = server.generation.Generate(generate(spec()))
        assert len(ids(reply)[0]) == 16
        wait_for(server, lambda now: now.requests_finished == 2)
        assert_healthy(server)
        assert list(stuck)[-1].HasField("finished")
