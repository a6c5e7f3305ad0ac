"""Time over HTTP: partial answers, and a client that leaves costs at most one more step."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx

from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway
from tests.gateway.test_requests import LONG, eventually

GatewayOver = Callable[..., RunningGateway]


def test_a_partial_answer_comes_in_place_of_a_504(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address, request_timeout_s=1.0)
    fields = LONG | {"n": 8, "partial_on_deadline": True, "ignore_eos": True}
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        reply = http.post("/v1/completions", json=fields)
        assert reply.status_code == 200, reply.text
        assert {choice["finish_reason"] for choice in reply.json()["choices"]} == {"length"}
        streamed = http.post("/v1/completions", json=fields | {"stream": True, "logprobs": 1})
        assert streamed.text.strip().endswith("[DONE]")


def test_after_a_client_has_left_at_most_one_more_step_is_computed(
    gateway: RunningGateway, demo: RunningServer
) -> None:
    before = demo.statistics()
    body = httpx.Request("POST", gateway.url, json=LONG | {"prompt": "once"}).read()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        eventually(lambda: demo.statistics().forward_passes > before.forward_passes)
    demo.wait_idle()  # the server has heard of it
    steps = demo.statistics().engine_steps
    eventually(lambda: demo.statistics().requests_aborted == before.requests_aborted + 1)
    assert demo.statistics().engine_steps - steps <= 1
