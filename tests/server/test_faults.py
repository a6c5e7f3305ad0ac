"""The engine's process dies, hangs or loses its device, of its own doing: what callers see."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.conftest import RunningServer
from tests.server.calls import detail, generate, ids, long_spec, reason, spec
from tests.server.test_lifecycle import NOT_SERVING, SERVING, watched
from tests.server.test_limits import begun, wait_for
from vdiff_grpc import v1

Serve = Callable[..., RunningServer]
FAULTS = {13: "die", 15: "hang", 16: "raise"}
POISON = spec([5, 13, 42])


@pytest.fixture
def faulty(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    """A server whose engine meets a fault in every step that holds one of these token ids."""
    faults = ",".join(f"{fault}:{token}" for token, fault in FAULTS.items())
    monkeypatch.setenv("VDIFF_FAULTS", faults)
    return serve(engine="process", max_step_time_s=2.0)


def refused(server: RunningServer, asked: v1.GenerationSpec) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as ended:
        server.generation.Generate(generate(asked), timeout=30)
    return ended.value


def test_what_ends_the_engine_is_refused_after_that_and_others_are_served(
    faulty: RunningServer,
) -> None:
    alone = ids(faulty.generation.Generate(generate(spec())))
    words = {13: "killed by SIGABRT", 15: "max_step_time_s is 2"}
    with watched(faulty) as statuses:
        assert next(statuses) == SERVING
        for token, said in words.items():
            error = refused(faulty, spec([5, token, 42]))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert reason(error) == "ENGINE_UNAVAILABLE"
            assert said in error.details()
            assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
            assert next(statuses) == NOT_SERVING
            error = refused(faulty, spec([5, token, 42]))
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason(error) == "REQUEST_QUARANTINED"
            assert next(statuses) == SERVING
            assert ids(faulty.generation.Generate(generate(spec()))) == alone
        # a fault that leaves the device as it was costs its own requests and not the engine
        for _ in range(2):
            error = refused(faulty, spec([5, 16, 42]))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "VDIFF_FAULTS" not in error.details()
        assert ids(faulty.generation.Generate(generate(spec()))) == alone
        info = faulty.model.GetServerInfo(v1.GetServerInfoRequest())
        assert info.engine_restarts == len(words)


def test_company_of_a_poison_request_is_answered_when_it_comes_again(
    faulty: RunningServer,
) -> None:
    with watched(faulty) as statuses:
        assert next(statuses) == SERVING
        bystander = begun(faulty, long_spec(n=8))
        assert refused(faulty, POISON).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as ended:
            list(bystander)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert next(statuses) == NOT_SERVING
        assert next(statuses) == SERVING
        # both are suspects: one after the other
        again = faulty.generation.Generate.future(generate(long_spec(n=8)))
        wait_for(faulty, lambda now: now.running_rows == 8)
        assert refused(faulty, POISON).code() is grpc.StatusCode.UNAVAILABLE
        assert len(again.result().outputs) == 8
        assert refused(faulty, POISON).code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_device_without_memory_costs_the_engine_and_not_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDIFF_FAULTS", "memory:13")
    server = serve()
    kept = spec()
    kept.request_id = "kept"
    answer = server.generation.Generate(generate(kept))
    with watched(server) as statuses:
        assert next(statuses) == SERVING
        error = refused(server, POISON)
        assert server.generation.Generate(generate(kept)) == answer
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "OutOfMemoryError" in error.details()
        assert next(statuses) == NOT_SERVING
        assert next(statuses) == SERVING
        assert refused(server, POISON).code() is grpc.StatusCode.FAILED_PRECONDITION
    assert len(ids(server.generation.Generate(generate(spec())))[0]) == 16


def test_an_engine_that_takes_too_long_to_load_is_given_up(serve: Serve) -> None:
    server = serve(engine="process", ready=False, max_load_time_s=0.05)
    assert "max_load_time_s is 0.05" in server.call(server.server.failed())
