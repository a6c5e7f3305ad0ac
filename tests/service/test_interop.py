"""grpc's own interoperability cases, those that apply: what every gRPC client relies on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.conftest import RunningServer
from tests.server.calls import generate, ids, long_spec, reason, spec, stream
from tests.server.test_limits import assert_nothing_else_runs, begun, wait_for
from vdiff_grpc import v1

Serve = Callable[..., RunningServer]

# What the interop suite's special_status_message has, in a field of ours that is told back.
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP \U0001f608\t\n"


def test_a_large_message_up_to_the_limit_is_read_and_one_above_is_refused_cleanly(
    server: RunningServer,
) -> None:
    limit = server.server.config.max_message_bytes
    below = v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[5] * (limit - 1024)))
    assert limit - 2048 < below.ByteSize() <= limit
    assert server.model.CountTokens(below).tokens == limit - 1024
    for size in (limit + 1024, 4 * limit):
        above = v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[5] * size))
        with pytest.raises(grpc.RpcError) as refused:
            server.model.CountTokens(above)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16  # same connection


def test_a_compressed_message_is_read_and_a_small_one_that_swells_is_refused(
    server: RunningServer,
) -> None:
    limit = server.server.config.max_message_bytes
    small = v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[5] * 1000))
    assert server.model.CountTokens(small, compression=grpc.Compression.Gzip).tokens == 1000
    bomb = v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[5] * 16 * limit))
    with pytest.raises(grpc.RpcError) as refused:
        server.model.CountTokens(bomb, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.model.CountTokens(small).tokens == 1000


def test_a_deadline_ends_the_call_in_time_and_frees_its_rows(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    since = time.monotonic()
    with pytest.raises(grpc.RpcError) as ended:
        server.generation.Generate(generate(long_spec(n=8)), timeout=0.2)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - since < 5, "generous: the machine may be busy"
    assert_nothing_else_runs(server, wait_for(server, lambda now: now.running_rows == 0))


def test_cancel_after_begin(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    call = server.generation.Generate.future(generate(long_spec(n=8)))
    wait_for(server, lambda now: now.running_rows == 1)
    assert call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert_nothing_else_runs(server, wait_for(server, lambda now: now.running_rows == 0))


def test_cancel_after_first_response(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    call = begun(server, long_spec(n=8))
    call.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    assert_nothing_else_runs(server, wait_for(server, lambda now: now.running_rows == 0))


def test_status_code_and_message_arrive_whatever_characters_they_quote(
    server: RunningServer,
) -> None:
    asked = spec()
    asked.model = SPECIAL
    for call in (
        lambda: server.generation.Generate(generate(asked)),
        lambda: list(server.generation.StreamGenerate(stream(asked))),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason(refused.value) == "MODEL_NOT_FOUND"
        assert "☺" in refused.value.details()
        assert "\U0001f608" in refused.value.details()
        assert "\n" not in refused.value.details(), "a log line could be forged with it"


@pytest.mark.parametrize(
    "path", ["/vdiff.v1.GenerationService/Unheard", "/grpc.testing.TestService/EmptyCall"]
)
def test_an_unimplemented_method_or_service_is_told_so(server: RunningServer, path: str) -> None:
    assert server.channel is not None
    with pytest.raises(grpc.RpcError) as refused:
        server.channel.unary_unary(path)(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_empty_message_and_metadata_are_taken(server: RunningServer) -> None:
    reply, call = server.model.GetServerInfo.with_call(
        v1.GetServerInfoRequest(), metadata=(("x-request-id", "mine"), ("x-other-bin", b"\0\xff"))
    )
    assert reply.model == "tiny"
    told = {**dict(call.initial_metadata()), **dict(call.trailing_metadata())}
    assert told["x-request-id"] == "mine"


def test_a_health_probe_gets_what_it_asks(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        assert_probes(channel)


def test_a_health_probe_over_tls_gets_the_same_and_one_in_the_clear_gets_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "server")
    server = serve(tls_cert=cert, tls_key=key)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with grpc.secure_channel(server.address, credentials) as channel:
        assert_probes(channel)
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            assert_probes(channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def assert_probes(channel: grpc.Channel) -> None:
    """What grpc_health_probe does: Check with a short deadline, by service name."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "vdiff.v1.GenerationService", "vdiff.v1.ModelService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="vdiff.v1.Unheard"), timeout=5)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_silent_call_is_kept_alive_by_pings(server: RunningServer) -> None:
    """Forty seconds of nothing but a ping every ten: the server must not call that too many."""
    options = [
        ("grpc.keepalive_time_ms", 10_500),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(server.address, options) as channel:
        request = health_pb2.HealthCheckRequest(service="vdiff.v1.GenerationService")
        call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=45)
        assert next(call).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, ended.value.details()
