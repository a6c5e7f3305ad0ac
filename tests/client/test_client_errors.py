"""A failed call's status and details arrive as one exception, from both clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from vdiff_grpc import v1
from vdiff_grpc.client import (
    AsyncClient,
    Client,
    ClientError,
    FieldViolation,
    InvalidArgumentError,
    QuotaViolation,
    ResourceExhaustedError,
    TimedOutError,
    UnavailableError,
)


def _status(code: int, message: str, *details: Any) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)


FULL = _status(
    code_pb2.RESOURCE_EXHAUSTED,
    "the queue is full",
    error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="vdiff"),
    error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(subject="rows", description="8 of 8 are taken")
        ]
    ),
    error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
)
WRONG = _status(
    code_pb2.INVALID_ARGUMENT,
    "top_p (2.0) is over the limit (1)",
    error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="vdiff"),
    error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="high")
        ]
    ),
)
STATUSES = {"full": FULL, "wrong": WRONG}


class _Refusing(v1.GenerationServiceServicer):
    """A peer that ends every call with the status named by the request id."""

    def Generate(self, request: Any, context: Any) -> None:  # noqa: N802
        if request.spec.request_id == "plain":
            context.abort(grpc.StatusCode.ABORTED, "as a status of another system")
        context.abort_with_status(rpc_status.to_status(STATUSES[request.spec.request_id]))

    def StreamGenerate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield v1.StreamGenerateResponse(started=v1.Started())
        self.Generate(request, context)


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    v1.add_GenerationServiceServicer_to_server(_Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def closed_address() -> Iterator[str]:
    """Where nobody listens, and nobody else can meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def _is_full(error: ClientError) -> None:
    assert type(error) is ResourceExhaustedError
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after_s == 1.5
    assert error.violations == ()
    assert error.quota == (QuotaViolation("rows", "8 of 8 are taken"),)
    assert str(error) == error.message == "the queue is full"


def test_a_refused_call_tells_when_to_come_back(refusing: str) -> None:
    with Client(refusing) as client, pytest.raises(ResourceExhaustedError) as caught:
        client.generate("a", request_id="full")
    _is_full(caught.value)


def test_a_wrong_field_is_named(refusing: str) -> None:
    with Client(refusing) as client, pytest.raises(InvalidArgumentError) as caught:
        client.generate("a", request_id="wrong")
    assert caught.value.reason == "INVALID_FIELD"
    assert caught.value.violations == (FieldViolation("sampling.top_p", "high"),)
    assert caught.value.retry_after_s is None


def test_a_stream_that_fails_midway_raises_after_its_events(refusing: str) -> None:
    events = []
    with Client(refusing) as client, pytest.raises(ResourceExhaustedError) as caught:
        events.extend(client.stream("a", request_id="full"))
    _is_full(caught.value)


def test_a_status_without_details_is_still_told(refusing: str) -> None:
    with Client(refusing) as client, pytest.raises(ClientError) as caught:
        client.generate("a", request_id="plain")
    assert type(caught.value) is ClientError
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.reason == ""


async def test_the_asyncio_client_raises_the_same(refusing: str) -> None:
    async with AsyncClient(refusing) as client:
        with pytest.raises(ResourceExhaustedError) as caught:
            await client.generate("a", request_id="full")
        _is_full(caught.value)
        stream = client.stream("a", request_id="full")
        assert (await anext(stream)).HasField("started")
        with pytest.raises(ResourceExhaustedError) as caught:
            await anext(stream)
        _is_full(caught.value)


async def test_no_server_is_unavailable_without_a_reason(closed_address: str) -> None:
    with (
        Client(closed_address, retries=None) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.generate("a")
    assert caught.value.reason == ""
    async with AsyncClient(closed_address, retries=None) as async_client:
        with pytest.raises(UnavailableError):
            await async_client.server_info()


async def test_waiting_for_a_server_that_never_comes_ends_in_time(closed_address: str) -> None:
    with Client(closed_address) as client, pytest.raises(TimedOutError, match="not ready after"):
        client.wait_until_ready(0.3)
    async with AsyncClient(closed_address) as async_client:
        with pytest.raises(TimeoutError, match="not ready after"):
            await async_client.wait_until_ready(0.3)


def test_waiting_for_a_peer_without_health_ends_at_once(refusing: str) -> None:
    with Client(refusing) as client, pytest.raises(ClientError) as caught:
        client.wait_until_ready(30)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
