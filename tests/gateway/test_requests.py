"""What holds for every request: its id, its headers, models, and the client that leaves."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from gateway.middleware import identify
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_refusals import TEXT
from vdiff_grpc import v1

LONG = TEXT | {"max_tokens": 200, "n": 8, "ignore_eos": True, "seed": 1}
STEPS_OF_LONG = 200 * 8


def test_a_request_id_is_kept_and_is_in_the_log_of_gateway_and_server(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    logging.getLogger("vdiff_grpc").addHandler(caplog.handler)
    try:
        reply = http.post("/v1/completions", json=TEXT, headers={"x-request-id": "mine-1"})
        assert reply.headers["x-request-id"] == "mine-1"

        def logged(name: str) -> bool:
            return any(
                "mine-1" in getattr(record, "fields", {}).values() and record.name.startswith(name)
                for record in caplog.records
            )

        eventually(lambda: logged("gateway") and logged("vdiff_grpc.server"))
    finally:
        logging.getLogger("vdiff_grpc").removeHandler(caplog.handler)
    record = next(r for r in caplog.records if r.name == "gateway.access")
    fields = record.__dict__["fields"]
    assert (fields["route"], fields["method"], fields["status"]) == ("/v1/completions", "POST", 200)
    assert fields["ms"] >= 0
    assert TEXT["prompt"] not in str([r.__dict__ for r in caplog.records if "gateway" in r.name])


@pytest.mark.parametrize("given", [None, "", "x" * 129, "caf\u00e9", "a\tb"])
def test_a_request_without_a_fit_id_gets_a_new_one(http: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    replies = [http.get("/health/live", headers=headers) for _ in range(2)]  # type: ignore[arg-type]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", made) for made in ids)
    assert ids[0] != ids[1]


def test_a_latency_budget_reaches_the_server_which_hurries(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    def forward_passes(**body: int) -> int:
        before = demo.statistics().forward_passes
        client.completions.create(
            model="demo",
            prompt="x",
            max_tokens=24,
            seed=1,
            extra_body={"ignore_eos": True, "steps": 24, **body},
        )
        return demo.statistics().forward_passes - before

    assert forward_passes(latency_budget_ms=1) == 1
    assert forward_passes(latency_budget_ms=60_000) == forward_passes() == 24


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("completions", {"prompt": "x", "max_tokens": 8}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8}),
        ("fim/completions", {"prompt": "x", "suffix": "y", "max_tokens": 8}),
        ("responses", {"input": "x", "max_output_tokens": 8}),
    ],
)
def test_the_usage_says_who_was_hurried(
    http: httpx.Client, path: str, asked: dict[str, Any]
) -> None:
    whole = {"model": "demo", "seed": 1, "ignore_eos": True, "steps": 8, **asked}
    streamed: dict[str, Any] = {"stream": True}
    if path != "responses":
        streamed["stream_options"] = {"include_usage": True}

    def usage(**extra: object) -> dict[str, Any]:
        reply = http.post(f"/v1/{path}", json=whole | extra)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()["usage"]
        return found

    assert usage(latency_budget_ms=1)["hurried"] is True
    assert "hurried" not in usage()
    assert "hurried" not in usage(latency_budget_ms=60_000)
    stream = http.post(f"/v1/{path}", json=whole | streamed | {"latency_budget_ms": 1})
    assert '"hurried":true' in stream.text
    assert '"hurried"' not in http.post(f"/v1/{path}", json=whole | streamed).text


def test_a_priority_reaches_the_server_which_decides(client: openai.OpenAI) -> None:
    def ask(priority: int) -> str:
        reply = client.completions.create(
            model="demo", prompt="x", max_tokens=2, seed=1, extra_body={"priority": priority}
        )
        return reply.choices[0].text

    assert ask(0) == ask(7)
    with pytest.raises(openai.PermissionDeniedError, match=r"priority \(-1\) is below"):
        ask(-1)


def test_a_cache_reaches_the_server_which_says_what_it_saved(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    def total() -> int:
        return demo.model.GetServerInfo(v1.GetServerInfoRequest()).statistics.computed_tokens

    def computed(**body: object) -> int:
        before = total()
        client.completions.create(
            model="demo",
            prompt="Once upon a time",
            max_tokens=24,
            seed=1,
            extra_body={"steps": 24, "ignore_eos": True, **body},
        )
        return total() - before

    assert computed(cache="dual") < computed(cache="none") == computed()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="demo", prompt="x", extra_body={"cache": "dual", "strategy": {"type": "wino"}}
        )
    assert caught.value.param == "cache"


def test_the_client_sees_the_id_and_the_time(client: openai.OpenAI) -> None:
    reply = client.completions.with_raw_response.create(model="demo", prompt="x", max_tokens=2)
    assert reply.request_id == reply.headers["x-request-id"]
    assert int(reply.headers["openai-processing-ms"]) >= 0
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="x", n=0)
    assert caught.value.request_id


def test_models_are_listed_under_each_name(client: openai.OpenAI, demo: RunningServer) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["demo", "demo-alias"]
    for model in models:
        assert (model.object, model.owned_by) == ("model", "vdiff-grpc")
        assert model.created > 1_700_000_000
        assert client.models.retrieve(model.id) == model


def test_health_and_version_answer(http: httpx.Client) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (http.get(path).status_code, http.get(path).json()) == (200, {"status": "ok"})
        assert http.head(path).status_code == 200
    version = http.get("/version").json()
    assert version["version"] == version["server_version"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["one", ["one", "two"]], ids=["one", "two"])
def test_a_client_that_leaves_frees_its_rows(
    http: httpx.Client,
    gateway: RunningGateway,
    demo: RunningServer,
    stream: bool,
    prompt: str | list[str],
) -> None:
    before = demo.statistics()
    num_rpcs = 1 if isinstance(prompt, str) else len(prompt)
    body = httpx.Request(
        "POST", gateway.url, json=LONG | {"stream": stream, "prompt": prompt}
    ).read()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        eventually(lambda: demo.statistics().forward_passes > before.forward_passes)
    eventually(
        lambda: (
            demo.statistics().requests_aborted == before.requests_aborted + num_rpcs
            and demo.statistics().running_rows == 0
        )
    )
    spent = demo.statistics().forward_passes - before.forward_passes
    assert 0 < spent < STEPS_OF_LONG * num_rpcs
    # The bystander is served as ever.
    assert http.post("/v1/completions", json=TEXT).status_code == 200


def test_a_connection_is_used_again(gateway: RunningGateway) -> None:
    body = httpx.Request("POST", gateway.url, json=TEXT).read()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        # Pipelined: the second request must not look like the first one's client leaving.
        connection.sendall((head.encode() + body) * 2)
        received = b""
        while received.count(b'"usage"') < 2:
            data = connection.recv(65536)
            assert data, received
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 2


async def test_streams_side_by_side_do_not_mix(aclient: openai.AsyncOpenAI) -> None:
    async def stream(marker: str) -> tuple[str, set[str]]:
        chunks = [
            chunk
            async for chunk in await aclient.completions.create(
                model="demo", prompt=marker, max_tokens=4, echo=True, stream=True
            )
        ]
        return "".join(chunk.choices[0].text for chunk in chunks), {chunk.id for chunk in chunks}

    markers = [f"Story number {i}:" for i in range(24)]
    answers = await asyncio.gather(*map(stream, markers))
    assert all(text.startswith(m) for (text, _), m in zip(answers, markers, strict=True))
    assert len({next(iter(ids)) for _, ids in answers}) == len(markers)
    assert all(len(ids) == 1 for _, ids in answers)


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "metadata"),
    [
        ([(b"traceparent", TRACE)], {"traceparent": TRACE.decode()}),
        (
            [(b"traceparent", TRACE), (b"tracestate", b"a=b")],
            {"traceparent": TRACE.decode(), "tracestate": "a=b"},
        ),
        ([(b"traceparent", b"not one")], {}),
        ([(b"tracestate", b"a=b")], {}),
        ([(b"authorization", b"Bearer key")], {"authorization": "Bearer key"}),
        ([(b"authorization", b"Bearer k\xc3\xa9y")], {}),
        ([(b"authorization", b"Basic key")], {}),
    ],
)
def test_trace_and_key_are_passed_on(
    headers: list[tuple[bytes, bytes]], metadata: dict[str, str]
) -> None:
    request_id, sent = identify([(b"x-request-id", b"mine"), *headers])
    assert request_id == "mine"
    assert dict(sent) == {"x-request-id": "mine"} | metadata


def test_a_probe_is_in_the_log_only_when_it_fails(
    http: httpx.Client,
    gateway_over: Callable[..., RunningGateway],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway.access")
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert http.get(path).status_code == 200
    assert not caplog.records
    alone = gateway_over("127.0.0.1:1")
    assert httpx.get(f"{alone.url}/health").status_code == 503
    eventually(lambda: len(caplog.records) == 1)
