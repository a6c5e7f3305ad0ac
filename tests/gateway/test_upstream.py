"""Between the gateway and its servers: calls made again, and several servers behind one gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_refusals import error_of
from tests.gateway.test_requests import LONG
from vdiff_grpc import v1

GatewayOver = Callable[..., RunningGateway]
Serve = Callable[..., RunningServer]
FIELDS = {"prompt": [5, 17], "max_tokens": 4, "ignore_eos": True, "seed": 3}


class Reluctant(v1.GenerationServiceServicer):
    """A peer that refuses as it is told to, then answers."""

    def __init__(self) -> None:
        self.refusals: list[tuple[grpc.StatusCode, float]] = []
        self.calls = 0
        self.after_started = False

    def Generate(self, request: Any, context: Any) -> v1.GenerateResponse:  # noqa: N802
        self._refuse(context)
        return v1.GenerateResponse(model="m", outputs=[v1.Output(text="yes")])

    def StreamGenerate(self, request: Any, context: Any) -> Iterator[v1.StreamGenerateResponse]:  # noqa: N802
        if not self.after_started:
            self._refuse(context)
        started = v1.Started(model="m")
        started.resolved.sampling.n = 1
        yield v1.StreamGenerateResponse(started=started)
        if self.after_started:
            self._refuse(context)
        yield v1.StreamGenerateResponse(committed=v1.Committed(text="yes"))
        yield v1.StreamGenerateResponse(finished=v1.Finished(ends=[v1.OutputEnd()]))

    def _refuse(self, context: Any) -> None:
        self.calls += 1
        if not self.refusals:
            return
        code, delay_s = self.refusals.pop(0)
        detail = any_pb2.Any()
        nanos = int(delay_s % 1 * 1e9)
        detail.Pack(
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=int(delay_s), nanos=nanos))
        )
        status = status_pb2.Status(code=code.value[0], message="not now", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))


@pytest.fixture
def reluctant() -> Iterator[tuple[Reluctant, str]]:
    servicer = Reluctant()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        v1.add_GenerationServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"127.0.0.1:{port}"
        server.stop(0).wait()


def count(gateway: RunningGateway, name: str, **labels: str) -> float:
    text = httpx.get(f"{gateway.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


# --- retries ----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_unavailable_server_is_asked_again_before_anything_was_sent(
    reluctant: tuple[Reluctant, str], gateway_over: GatewayOver, stream: bool
) -> None:
    servicer, address = reluctant
    gateway = gateway_over(address)
    servicer.refusals = [(grpc.StatusCode.UNAVAILABLE, 0.01)] * 2
    reply = httpx.post(f"{gateway.url}/v1/completions", json=FIELDS | {"stream": stream})
    assert reply.status_code == 200
    assert "yes" in reply.text
    assert servicer.calls == 3
    assert count(gateway, "vdiff_gateway_upstream_retries_total") == 2
    assert count(gateway, "vdiff_gateway_upstream_errors_total") == 0


def test_a_call_that_a_stopping_server_cancels_is_made_again(
    reluctant: tuple[Reluctant, str], gateway_over: GatewayOver
) -> None:
    servicer, address = reluctant
    gateway = gateway_over(address, retry_attempts=2)
    servicer.refusals = [(grpc.StatusCode.CANCELLED, 0)] * 3
    assert httpx.post(f"{gateway.url}/v1/completions", json=FIELDS).status_code == 503
    assert httpx.post(f"{gateway.url}/v1/completions", json=FIELDS).status_code == 200
    assert servicer.calls == 4


@pytest.mark.parametrize("stream", [False, True])
def test_attempts_end(
    reluctant: tuple[Reluctant, str], gateway_over: GatewayOver, stream: bool
) -> None:
    servicer, address = reluctant
    gateway = gateway_over(address, retry_attempts=2)
    servicer.refusals = [(grpc.StatusCode.UNAVAILABLE, 0.01)] * 5
    reply = httpx.post(f"{gateway.url}/v1/completions", json=FIELDS | {"stream": stream})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert servicer.calls == 2
    failed = {"rpc_response_status_code": "UNAVAILABLE"}
    assert count(gateway, "vdiff_gateway_upstream_errors_total", **failed) == 1


@pytest.mark.parametrize(
    ("code", "delay_s", "settings", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.01, {}, 429),
        (grpc.StatusCode.INTERNAL, 0.01, {}, 500),
        # The client is told the pause in place of being made to wait for it.
        (grpc.StatusCode.UNAVAILABLE, 7.0, {}, 503),
        # There would be no time left.
        (grpc.StatusCode.UNAVAILABLE, 1.9, {"request_timeout_s": 1.0}, 503),
        (grpc.StatusCode.UNAVAILABLE, 0.01, {"retry_attempts": 1}, 503),
    ],
)
def test_what_asking_again_cannot_mend_is_told_at_once(
    reluctant: tuple[Reluctant, str],
    gateway_over: GatewayOver,
    code: grpc.StatusCode,
    delay_s: float,
    settings: dict[str, Any],
    status: int,
) -> None:
    servicer, address = reluctant
    gateway = gateway_over(address, **settings)
    for stream in (False, True):
        servicer.refusals, servicer.calls = [(code, delay_s)], 0
        reply = httpx.post(f"{gateway.url}/v1/completions", json=FIELDS | {"stream": stream})
        assert (reply.status_code, servicer.calls) == (status, 1)
        if delay_s == 7.0:
            assert reply.headers["retry-after"] == "7"


def test_a_stream_that_has_begun_is_not_begun_again(
    reluctant: tuple[Reluctant, str], gateway_over: GatewayOver
) -> None:
    servicer, address = reluctant
    gateway = gateway_over(address)
    servicer.after_started = True
    servicer.refusals = [(grpc.StatusCode.UNAVAILABLE, 0.01)]
    reply = httpx.post(f"{gateway.url}/v1/completions", json=FIELDS | {"stream": True})
    last = reply.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert servicer.calls == 1


# --- several servers --------------------------------------------------------


def test_two_servers_take_turns_and_one_may_leave_without_a_failed_request(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    first, second = serve(), serve()
    gateway = gateway_over(f"{first.address},{second.address}")

    def asked() -> list[int]:
        return [server.statistics().requests for server in (first, second)]

    with httpx.Client(base_url=gateway.url, timeout=30) as http:

        def texts(num: int) -> set[str]:
            replies = [http.post("/v1/completions", json=FIELDS) for _ in range(num)]
            assert [reply.status_code for reply in replies] == [200] * num
            return {reply.json()["choices"][0]["text"] for reply in replies}

        eventually(lambda: bool(texts(1)) and min(asked()) > 0)  # both have been found
        before = asked()
        assert len(texts(10)) == 1  # the same answer, whoever gives it
        assert [now - then for now, then in zip(asked(), before, strict=True)] == [5, 5]
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(texts, 10) for _ in range(4)]
            first.call(first.server.stop())
            assert all(answer.result() for answer in answers)
        assert http.get("/health").status_code == 200
        second.call(second.server.drain())
        eventually(lambda: http.get("/health").status_code == 503)
        assert "draining" in http.get("/health").json()["reason"]
        refused = http.post("/v1/completions", json=FIELDS)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")


def test_a_name_that_stands_for_servers_is_looked_up(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    port = serve().address.rpartition(":")[2]
    gateway = gateway_over(f"dns:///localhost:{port}")
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        eventually(lambda: http.get("/health").status_code == 200)
        assert http.post("/v1/completions", json=FIELDS).status_code == 200
        assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"


# --- metrics ----------------------------------------------------------------


def test_metrics_count_requests_by_route_and_status_and_hold_no_text_of_a_client(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address)
    fields = {"prompt": "The little cat", "max_tokens": 4}
    with httpx.Client(base_url=gateway.url) as http:
        http.post("/v1/completions", json=fields)
        http.post("/v1/completions", json=fields | {"stream": True})
        http.post("/v1/completions", json={})
        http.request("PROPFIND", "/secret-path")
        page = http.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=")
        newer = http.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert newer.headers["content-type"].startswith("application/openmetrics-text")
        assert newer.text.endswith("# EOF\n")
    assert not any(text in page.text for text in ("secret", "PROPFIND", "little"))
    name, route = "http_server_request_duration_seconds_count", {"http_route": "/v1/completions"}
    assert count(gateway, name, http_response_status_code="200", **route) == 2
    assert count(gateway, name, http_response_status_code="400", **route) == 1
    assert count(gateway, name, http_request_method="_OTHER", http_route="unknown") == 1
    # The page itself is being answered.
    assert count(gateway, "http_server_active_requests") == 1
    assert count(gateway, "vdiff_gateway_time_to_first_event_seconds_count", **route) == 1
    assert count(gateway, "process_resident_memory_bytes") > 1e6


def test_a_client_that_left_is_counted_as_499(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address)
    fields = LONG | {"stream": True, "diffusing": True}
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=fields, timeout=30) as reply:
        next(reply.iter_lines())
    name = "http_server_request_duration_seconds_count"
    eventually(lambda: count(gateway, name, http_response_status_code="499") == 1)
    eventually(lambda: demo.statistics().running_rows == 0)
