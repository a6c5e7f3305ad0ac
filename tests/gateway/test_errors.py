"""Every other error: no such model or URL, too busy, too large, too late, not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import httpx
import openai
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from gateway.errors import from_rpc
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_refusals import TEXT, error_of

Serve = Callable[..., RunningServer]
GatewayOver = Callable[..., RunningGateway]


def test_an_unknown_model_is_model_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/model")
    assert caught.value.code == "model_not_found"
    assert "org/model" in caught.value.message


def test_an_unknown_url_and_a_wrong_method_have_openais_shape(http: httpx.Client) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "unknown_url"),
        ("POST", "/", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ):
        reply = http.request(method, path)
        assert reply.status_code == status
        assert error_of(reply)["code"] == code
        assert "x-request-id" in reply.headers


def test_a_full_queue_is_429_with_retry_after(serve: Serve, gateway_over: GatewayOver) -> None:
    server = serve(max_running_rows=1, max_waiting_rows=1)
    gateway = gateway_over(server.address)
    fields = {"prompt": [5, 17, 42], "max_tokens": 100, "ignore_eos": True}
    with httpx.Client(base_url=gateway.url, timeout=60) as http:
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda _: http.post("/v1/completions", json=fields), range(12)))
        by_status: dict[int, list[httpx.Response]] = {}
        for reply in replies:
            by_status.setdefault(reply.status_code, []).append(reply)
        assert set(by_status) == {200, 429}
        refused = by_status[429][0]
        error = error_of(refused)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        # A list is all or nothing.
        several = http.post("/v1/completions", json=fields | {"prompt": [[5], [6], [7], [8]]})
        assert several.status_code == 429
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        prompts = [[5], [6], [7], [8]]
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError):
                client.completions.create(
                    model="tiny", prompt=prompts, max_tokens=100, stream=stream
                )


def test_a_server_that_is_not_there_is_503_with_a_reason(gateway_over: GatewayOver) -> None:
    gateway = gateway_over("127.0.0.1:1")
    with httpx.Client(base_url=gateway.url) as http:
        for path in ("/health", "/health/ready"):
            reply = http.get(path)
            assert reply.status_code == 503
            assert reply.json() == {
                "status": "unavailable",
                "reason": "the model server cannot be reached",
            }
        assert http.get("/health/live").status_code == 200
        version = http.get("/version")
        assert (version.status_code, version.json()["server_version"]) == (200, None)
        for reply in (http.post("/v1/completions", json=TEXT), http.get("/v1/models")):
            assert reply.status_code == 503
            error = error_of(reply)
            assert (error["type"], error["code"]) == ("server_error", "unavailable")
            assert "127.0.0.1" not in error["message"]
            assert reply.headers["retry-after"] == "1"
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.models.list()
        assert caught.value.status_code == 503


def test_a_server_that_comes_up_later_is_found(serve: Serve, gateway_over: GatewayOver) -> None:
    # The port of a server that has gone is the port of the one that comes.
    first = serve()
    gateway = gateway_over(first.address)
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        assert http.get("/health").json() == {"status": "ok"}
        first.call(first.server.stop())
        assert http.get("/health").status_code == 503
        serve(port=int(first.address.rpartition(":")[2]))
        eventually(lambda: http.get("/health").status_code == 200)
        assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_a_draining_server_is_503_with_its_state(serve: Serve, gateway_over: GatewayOver) -> None:
    server = serve()
    gateway = gateway_over(server.address)
    server.call(server.server.drain())
    with httpx.Client(base_url=gateway.url) as http:
        reply = http.get("/health")
        assert reply.status_code == 503
        assert reply.json()["reason"] == "the model server is not serving: draining"
        refused = http.post("/v1/completions", json={"prompt": [5], "max_tokens": 4})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers


def test_a_body_over_the_limit_is_413(demo: RunningServer, gateway_over: GatewayOver) -> None:
    gateway = gateway_over(demo.address, max_body_bytes=1000)
    with httpx.Client(base_url=gateway.url) as http:
        announced = http.post("/v1/completions", json={"prompt": "x" * 2000})
        unannounced = http.post("/v1/completions", content=iter([b"x" * 800, b"x" * 800]))
        for reply in (announced, unannounced):
            assert reply.status_code == 413
            error = error_of(reply)
            assert error["code"] == "request_too_large"
            assert "1000 bytes" in error["message"]
        assert http.post("/v1/completions", json=TEXT).status_code == 200


def test_a_request_that_takes_too_long_is_504(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address, request_timeout_s=0.02)
    fields = TEXT | {"max_tokens": 200, "n": 8, "ignore_eos": True, "seed": 1}
    with httpx.Client(base_url=gateway.url) as http:
        reply = http.post("/v1/completions", json=fields)
        assert reply.status_code == 504
        error = error_of(reply)
        assert (error["type"], error["code"]) == ("server_error", "timeout")
        streamed = http.post("/v1/completions", json=fields | {"stream": True})
        if streamed.status_code == 200:  # the time was over after the stream had begun
            assert '"code":"timeout"' in streamed.text.strip().split("\n\n")[-1]
            assert "[DONE]" not in streamed.text
        else:
            assert streamed.status_code == 504


def test_a_server_that_dies_under_a_stream_is_an_error_event(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    server = serve()
    gateway = gateway_over(server.address)
    fields = {"prompt": [5], "max_tokens": 100, "n": 8, "ignore_eos": True, "stream": True}
    fields |= {"diffusing": True}
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=fields, timeout=30) as reply:
        assert reply.status_code == 200
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        server.call(server.server.stop(at_once=True))
        last = list(lines)[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "unavailable")


async def test_the_client_raises_for_an_error_event(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    server = serve()
    gateway = gateway_over(server.address)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        stream = await client.completions.create(
            model="tiny",
            prompt=[5],
            max_tokens=100,
            n=8,
            stream=True,
            extra_body={"ignore_eos": True, "diffusing": True},
        )
        server.call(server.server.stop(at_once=True))
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "unavailable"


Status = grpc.StatusCode


def rpc_error(code: grpc.StatusCode, text: str, *details: Message) -> grpc.aio.AioRpcError:
    """As the server's status reaches a client."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=text, details=packed)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), trailing if details else grpc.aio.Metadata(), text
    )


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (Status.INVALID_ARGUMENT, 400, "invalid_request_error"),
        (Status.UNAUTHENTICATED, 401, "invalid_request_error"),
        (Status.PERMISSION_DENIED, 403, "permission_error"),
        (Status.NOT_FOUND, 404, "invalid_request_error"),
        (Status.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
        (Status.CANCELLED, 503, "server_error"),  # by a server that stops
        (Status.INTERNAL, 500, "server_error"),
        (Status.UNKNOWN, 500, "server_error"),
        (Status.DATA_LOSS, 500, "server_error"),
        (Status.UNIMPLEMENTED, 501, "server_error"),
        (Status.UNAVAILABLE, 503, "server_error"),
        (Status.DEADLINE_EXCEEDED, 504, "server_error"),
    ],
)
def test_each_status_has_its_http_status(code: grpc.StatusCode, status: int, kind: str) -> None:
    error = from_rpc(rpc_error(code, "10.0.0.1: /etc/secret"))
    assert (error.status, error.reply.error.type) == (status, kind)
    assert error.headers.get("x-should-retry") == ("false" if status == 500 else None)
    assert ("retry-after" in error.headers) == (status in (429, 503))
    if status >= 500:
        assert "secret" not in error.reply.error.message or status == 501


def test_what_somebody_cancelled_on_purpose_is_499() -> None:
    info = error_details_pb2.ErrorInfo(reason="REQUEST_CANCELLED", domain="vdiff")
    assert from_rpc(rpc_error(Status.CANCELLED, "cancelled", info)).status == 499


@pytest.mark.parametrize(("asked_s", "given"), [(0.2, "1"), (1.5, "2"), (7, "7"), (900, "120")])
def test_retry_after_is_whole_seconds_and_never_above_the_clients_limit(
    asked_s: float, given: str
) -> None:
    delay = Duration()
    delay.FromMilliseconds(round(asked_s * 1000))
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="vdiff")
    retry = error_details_pb2.RetryInfo(retry_delay=delay)
    error = from_rpc(rpc_error(Status.RESOURCE_EXHAUSTED, "full", info, retry))
    assert (error.headers["retry-after"], error.reply.error.code) == (given, "queue_full")


def test_a_message_too_large_for_the_server_is_413() -> None:
    text = "SERVER: Received message larger than max (5000000 vs. 4194304)"
    assert from_rpc(rpc_error(Status.RESOURCE_EXHAUSTED, text)).status == 413
