"""A server's life, seen through health checks: load, serve, drain, lose its engine, stop."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.conftest import TINY, RunningServer
from tests.server.calls import detail, generate, ids, long_spec, reason, spec
from tests.server.test_limits import begun
from vdiff_grpc import v1
from vdiff_grpc.errors import CheckpointError
from vdiff_grpc.server.app import AddressError

Serve = Callable[..., RunningServer]

GENERATION = "vdiff.v1.GenerationService"
MODEL = "vdiff.v1.ModelService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(server: RunningServer, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service)).status


@contextmanager
def watched(server: RunningServer) -> Iterator[Iterator[int]]:
    """The statuses of the generation service, each as it comes."""
    stub = health_pb2_grpc.HealthStub(server.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service=GENERATION))
    yield (response.status for response in call)
    call.cancel()


def test_before_the_weights_are_loaded_it_is_alive_and_describes_the_model(serve: Serve) -> None:
    server = serve(engine="process", ready=False)
    assert health(server, "") == SERVING
    assert health(server, GENERATION) == health(server, MODEL) == NOT_SERVING
    every = health_pb2_grpc.HealthStub(server.channel).List(health_pb2.HealthListRequest())
    assert {name: one.status for name, one in every.statuses.items()} == {
        "": SERVING,
        GENERATION: NOT_SERVING,
        MODEL: NOT_SERVING,
    }
    info = server.model.GetModelInfo(v1.GetModelInfoRequest())
    assert (info.model, info.limits.max_canvas_tokens) == ("tiny", 128)
    state = server.model.GetServerInfo(v1.GetServerInfoRequest()).state
    assert state in (v1.ENGINE_STATE_LOADING, v1.ENGINE_STATE_WARMING_UP)
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec()))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(refused.value) == "ENGINE_UNAVAILABLE"
    assert detail(refused.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    with watched(server) as statuses:
        assert next(statuses) == NOT_SERVING
        assert next(statuses) == SERVING
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16


def test_when_its_engine_is_killed_it_says_so_and_comes_back(serve: Serve) -> None:
    server = serve(engine="process", max_running_rows=1)
    with watched(server) as statuses:
        assert next(statuses) == SERVING
        open_call = begun(server, long_spec(n=8))
        [engine] = multiprocessing.active_children()
        engine.kill()
        with pytest.raises(grpc.RpcError) as ended:
            list(open_call)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "engine process ended" in ended.value.details()
        assert next(statuses) == NOT_SERVING
        info = server.model.GetServerInfo(v1.GetServerInfoRequest())
        assert info.state in (v1.ENGINE_STATE_ERROR, v1.ENGINE_STATE_LOADING)
        assert health(server, "") == SERVING
        assert next(statuses) == SERVING
    # who is killed from outside blames nobody, alone though it was
    assert len(server.generation.Generate(generate(long_spec(n=8))).outputs) == 8
    now = server.statistics()
    assert (now.requests, now.requests_failed, now.requests_finished) == (2, 1, 1)
    assert (now.running_rows, now.waiting_rows) == (0, 0)


def test_draining_refuses_new_calls_and_finishes_open_ones(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    with watched(server) as statuses:
        assert next(statuses) == SERVING
        open_call = begun(server, long_spec(n=2))
        drained = asyncio.run_coroutine_threadsafe(server.server.drain(), server._loop)
        assert next(statuses) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            server.generation.Generate(generate(spec()))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in refused.value.details()
        info = server.model.GetServerInfo(v1.GetServerInfoRequest())
        assert info.state == v1.ENGINE_STATE_DRAINING
        assert health(server, "") == SERVING
        assert list(open_call)[-1].HasField("finished")
        drained.result(10)


def test_during_the_drain_delay_calls_are_still_taken(serve: Serve) -> None:
    server = serve(drain_delay_s=2.0)
    with watched(server) as statuses:
        assert next(statuses) == SERVING
        drained = asyncio.run_coroutine_threadsafe(server.server.drain(), server._loop)
        assert next(statuses) == NOT_SERVING
        server.generation.Generate(generate(spec()))
        drained.result(10)
        with pytest.raises(grpc.RpcError):
            server.generation.Generate(generate(spec()))


def test_calls_that_outlast_the_grace_end_unavailable(serve: Serve) -> None:
    server = serve(max_running_rows=1, grace_s=0.05)
    open_call = begun(server, long_spec(n=8))
    server.call(server.server.drain())
    server.call(server.server.stop())
    with pytest.raises(grpc.RpcError) as ended:
        list(open_call)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopped" in ended.value.details()


def test_a_watching_balancer_does_not_hold_up_the_end(serve: Serve) -> None:
    server = serve()
    with watched(server) as statuses:
        assert next(statuses) == SERVING
        server.call(server.server.drain(), timeout_s=3)
        server.call(server.server.stop(), timeout_s=3)


def test_a_taken_port_is_not_shared(serve: Serve, server: RunningServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(AddressError, match=f"127.0.0.1:{port}: the port is taken"):
        serve(port=port)


def test_a_missing_checkpoint_fails_the_start(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        serve(model=str(tmp_path / "nowhere"))


def test_weights_that_cannot_be_loaded_fail_the_first_start(serve: Serve, tmp_path: Path) -> None:
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        serve(model=str(tmp_path))


def test_reflection_lists_our_services_unless_switched_off(
    server: RunningServer, serve: Serve
) -> None:
    listed = ProtoReflectionDescriptorDatabase(server.channel).get_services()
    assert {GENERATION, MODEL, "grpc.health.v1.Health"} <= set(listed)
    assert server.channel is not None
    version_1 = server.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=GENERATION)
    [answer] = version_1(iter([request]))
    assert answer.HasField("file_descriptor_response")
    silent = serve(reflection=False)
    with pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(silent.channel).get_services()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_over_the_limit_is_refused(serve: Serve) -> None:
    server = serve(max_message_bytes=1024)
    server.generation.Generate(generate(spec()))
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec([1] * 2000)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
