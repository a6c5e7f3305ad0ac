"""Spans of gateway, server and engine, as a real OTLP receiver gets them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from gateway import logs as gateway_logs
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.server.calls import PROMPT, generate, long_spec, spec, stream
from tests.telemetry.conftest import Observed
from tests.telemetry.receiver import Receiver, Span
from vdiff_grpc.server import logs as server_logs

INTERNAL, SERVER, CLIENT = 1, 2, 3
RPC = "vdiff.v1.GenerationService/Generate"
SECRET = "SecretPalaceOfTheCat"
KEY = "vdiff-key-that-nobody-may-see"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Observe = Callable[..., Observed]


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {f"{span.service} {span.name} {span.kind}": span for span in spans}


def post(observed: Observed, path: str = "/v1/completions", **body: object) -> httpx.Response:
    headers = {"x-request-id": str(body.pop("request_id")), "authorization": f"Bearer {KEY}"}
    headers |= body.pop("headers", {})  # type: ignore[arg-type]
    return httpx.post(f"{observed.gateway.url}{path}", headers=headers, json=body, timeout=60)


class Lines(logging.Handler):
    """A process's log as it is written, line by line."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))

    def of(self, request_id: str) -> dict[str, Any]:
        """The line at the end of this request."""

        def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.written]
            return [
                line
                for line in lines
                if line.get("request_id") == request_id and line["message"] == "request"
            ]

        eventually(lambda: bool(found()))
        return found()[0]


@pytest.fixture
def written() -> Iterator[dict[str, Lines]]:
    """The logs of gateway and server."""
    handlers = {
        "gateway": Lines(gateway_logs._JsonFormatter()),
        "vdiff_grpc": Lines(server_logs._JsonFormatter()),
    }
    levels = {name: logging.getLogger(name).level for name in handlers}
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield handlers
    for name, handler in handlers.items():
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(levels[name])


def test_a_request_is_one_trace_from_the_gateway_to_the_blocks_of_the_engine(
    observed: Observed, written: dict[str, Lines]
) -> None:
    reply = post(
        observed,
        request_id="whole",
        prompt=f"The {SECRET}. Once upon a time, there was",
        seed=3,
        max_tokens=24,
        block_length=8,
        ignore_eos=True,
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"},
    )
    text = reply.json()["choices"][0]["text"]
    spans = observed.receiver.trace_of("whole", 2)

    names = by_name(spans)
    http = names[f"vdiff-gateway POST /v1/completions {SERVER}"]
    sent = names[f"vdiff-gateway {RPC} {CLIENT}"]
    call = names[f"vdiff-grpc {RPC} {SERVER}"]
    queue = names[f"vdiff-grpc vdiff.queue {INTERNAL}"]
    work = names[f"vdiff-grpc vdiff.generate {INTERNAL}"]
    first = names[f"vdiff-grpc vdiff.first_step {INTERNAL}"]
    blocks = [span for span in spans if span.name == "vdiff.block"]
    assert len(spans) == 6 + len(blocks)

    assert http.trace == TRACE
    parents = [http.parent, sent.parent, call.parent, queue.parent, work.parent, first.parent]
    assert parents == [PARENT, http.id, sent.id, call.id, call.id, work.id]
    assert {block.parent for block in blocks} == {work.id}
    assert [block.attributes["vdiff.block.index"] for block in blocks] == [0, 1, 2]
    assert http.begin_ns <= sent.begin_ns <= call.begin_ns <= queue.begin_ns <= work.begin_ns
    assert queue.end_ns == work.begin_ns == first.begin_ns == blocks[0].begin_ns
    assert first.end_ns <= blocks[0].end_ns == blocks[1].begin_ns
    assert blocks[1].end_ns == blocks[2].begin_ns
    assert blocks[2].end_ns <= work.end_ns <= call.end_ns <= sent.end_ns <= http.end_ns
    passes = [block.attributes["vdiff.forward_passes"] for block in blocks]
    assert passes == sorted(passes)
    assert passes[-1] == call.attributes["vdiff.forward_passes"]

    assert call.attributes["gen_ai.operation.name"] == "text_completion"
    assert call.attributes["gen_ai.request.model"] == "demo"
    assert call.attributes["gen_ai.usage.output_tokens"] == 24
    assert call.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert not any(span.is_error for span in spans)

    # both processes' lines name the request, and its trace
    at_gateway, at_server = (lines.of("whole") for lines in written.values())
    assert (at_gateway["trace_id"], at_gateway["span_id"]) == (TRACE, http.id)
    assert (at_server["trace_id"], at_server["span_id"]) == (TRACE, call.id)

    # nothing that the caller wrote, was given or must keep to itself
    everything = b"".join(observed.receiver.payload)
    everything += "".join(line for lines in written.values() for line in lines.written).encode()
    generated = re.findall(r"\w+ \w+", text)
    assert len(generated) > 2
    for private in (SECRET, KEY, *generated):
        assert private.encode() not in everything, private


def test_a_stream_is_a_trace_too_and_chat_is_named_so(observed: Observed) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    reply = post(
        observed,
        "/v1/chat/completions",
        request_id="chat",
        messages=messages,
        max_tokens=4,
        stream=True,
    )
    assert reply.text.endswith("[DONE]\n\n")
    spans = observed.receiver.trace_of("chat", 2)
    names = by_name(spans)
    streamed = "vdiff.v1.GenerationService/StreamGenerate"
    call = names[f"vdiff-grpc {streamed} {SERVER}"]
    assert call.parent == names[f"vdiff-gateway {streamed} {CLIENT}"].id
    assert call.attributes["gen_ai.operation.name"] == "chat"
    assert f"vdiff-grpc vdiff.generate {INTERNAL}" in names


def test_several_answers_have_blocks_of_their_own_and_so_have_several_prompts_calls(
    observed: Observed,
) -> None:
    post(
        observed,
        request_id="several",
        prompt=["a", "b"],
        n=2,
        max_tokens=8,
        block_length=4,
        ignore_eos=True,
    )
    spans = observed.receiver.trace_of("several", 3)
    calls = [span for span in spans if span.kind == SERVER and span.service == "vdiff-grpc"]
    assert len(calls) == 2
    works = [span for span in spans if span.name == "vdiff.generate"]
    assert {work.parent for work in works} == {call.id for call in calls}
    for work in works:
        told = [
            (span.attributes["vdiff.output.index"], span.attributes["vdiff.block.index"])
            for span in spans
            if span.name == "vdiff.block" and span.parent == work.id
        ]
        assert sorted(told) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_very_many_blocks_share_their_last_span(observed: Observed) -> None:
    post(
        observed,
        request_id="many",
        prompt="x",
        max_tokens=80,
        block_length=1,
        ignore_eos=True,
    )
    spans = observed.receiver.trace_of("many", 2)
    blocks = [span for span in spans if span.name == "vdiff.block"]
    (rest,) = (span for span in spans if span.name == "vdiff.later_blocks")
    assert len(blocks) == 64
    assert rest.attributes["vdiff.block.count"] == 16
    assert rest.begin_ns == blocks[-1].end_ns


def test_a_refused_request_is_recorded_with_its_status_and_reason(observed: Observed) -> None:
    refused = post(observed, request_id="refused", prompt="x", model=f"no-{SECRET}")
    assert refused.status_code == 404
    names = by_name(observed.receiver.trace_of("refused", 2))
    call, sent = names[f"vdiff-grpc {RPC} {SERVER}"], names[f"vdiff-gateway {RPC} {CLIENT}"]
    assert call.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert call.attributes["vdiff.reason"] == "MODEL_NOT_FOUND"
    assert call.attributes["gen_ai.request.model"] == "_OTHER"
    # the caller's fault, not the server's; to the gateway, which is a client, it is a failure
    assert (call.is_error, sent.is_error) == (False, True)
    assert sent.attributes["error.type"] == "NOT_FOUND"


def test_a_call_whose_time_is_over_is_an_error_with_the_phases_it_reached(
    observed: Observed,
) -> None:
    late = long_spec()
    late.request_id = "late"
    late.text = "x"
    with pytest.raises(grpc.RpcError):
        observed.server.generation.Generate(generate(late), timeout=0.3)
    spans = observed.receiver.trace_of("late")
    call, work = (
        next(span for span in spans if span.name == name) for name in (RPC, "vdiff.generate")
    )
    assert call.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert call.attributes["error.type"] == "DEADLINE_EXCEEDED"
    assert call.is_error
    assert work.attributes["vdiff.outcome"] == "failed"


def test_a_caller_that_leaves_is_recorded_as_cancelled_by_both(observed: Observed) -> None:
    with httpx.stream(
        "POST",
        f"{observed.gateway.url}/v1/completions",
        headers={"x-request-id": "left"},
        json={"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True},
        timeout=60,
    ) as reply:
        next(reply.iter_bytes())
    spans = observed.receiver.trace_of("left", 2)
    streamed = "vdiff.v1.GenerationService/StreamGenerate"
    names = by_name(spans)
    assert names[f"vdiff-gateway POST /v1/completions {SERVER}"].attributes[
        "http.response.status_code"
    ] == 499  # fmt: skip
    for end in (f"vdiff-gateway {streamed} {CLIENT}", f"vdiff-grpc {streamed} {SERVER}"):
        assert names[end].attributes["rpc.response.status_code"] == "CANCELLED"
    outcome = names[f"vdiff-grpc vdiff.generate {INTERNAL}"].attributes["vdiff.outcome"]
    assert outcome == "cancelled"


def test_a_call_made_again_is_another_span_of_the_same_request(observe: Observe) -> None:
    observed = observe(server="127.0.0.1:1")
    reply = post(observed, request_id="again", prompt=PROMPT)
    assert reply.status_code == 503
    spans = observed.receiver.trace_of("again")
    tries = [span for span in spans if span.kind == CLIENT]
    assert len(tries) == 3
    assert {span.attributes["error.type"] for span in tries} == {"UNAVAILABLE"}
    (http,) = (span for span in spans if span.kind == SERVER)
    assert http.attributes["error.type"] == "503"
    assert http.is_error


def test_what_is_not_sampled_is_not_sent_and_still_passed_on(observe: Observe) -> None:
    observed = observe(OTEL_TRACES_SAMPLER="always_off")
    assert post(observed, request_id="unseen", prompt=PROMPT).status_code == 200
    # the metrics that come after it show that spans had the time to come
    observed.receiver.wait_for(lambda receiver: _count(observed) == 1)
    assert observed.receiver.spans == []


def test_a_caller_that_does_not_sample_is_heeded(observe: Observe) -> None:
    observed = observe()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert post(observed, request_id="no", prompt=PROMPT, headers=headers).status_code == 200
    assert post(observed, request_id="yes", prompt=PROMPT).status_code == 200
    observed.receiver.trace_of("yes", 2)
    assert TRACE not in {span.trace for span in observed.receiver.spans}


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"},
    ],
)
def test_exporting_can_be_switched_off(observe: Observe, variables: dict[str, str]) -> None:
    observed = observe(**variables)
    assert observed.gateway.gateway._exporting is None
    assert observed.server.server._exporting is None
    assert post(observed, request_id="off", prompt=PROMPT).status_code == 200


def test_http_is_spoken_where_the_protocol_says_so_with_the_headers_it_was_given(
    observe: Observe, receiver: Receiver
) -> None:
    observed = observe(
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http_endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=blue",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_SERVICE_NAME="mine",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    post(observed, request_id="http", prompt=PROMPT)
    spans = receiver.trace_of("http", 2)
    assert {span.service for span in spans} == {"mine"}
    receiver.wait_for(lambda found: _count(observed, "mine") == 1)
    assert {headers.get("x-tenant") for headers in receiver.headers} == {"blue"}


def test_a_receiver_that_is_away_delays_neither_calls_nor_the_end(observe: Observe) -> None:
    observed = observe(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert post(observed, request_id="alone", prompt=PROMPT).status_code == 200
    begin = time.monotonic()
    observed.close()
    assert time.monotonic() - begin < 10


def test_without_export_the_callers_trace_goes_on_to_the_server_and_into_the_log(
    server: RunningServer,
    gateway_over: Callable[..., RunningGateway],
    written: dict[str, Lines],
) -> None:
    gateway = gateway_over(server.address)
    assert gateway.gateway._exporting is server.server._exporting is None
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "passing"}
    httpx.post(f"{gateway.url}/v1/completions", headers=headers, json={"prompt": PROMPT})
    for lines in written.values():
        assert lines.of("passing")["trace_id"] == TRACE


def _count(observed: Observed, service: str = "vdiff-grpc") -> int:
    """Generation requests that the server has counted."""
    metric = observed.receiver.metrics.get((service, "gen_ai.server.request.duration"))
    return sum(point.count for point in metric.histogram.data_points) if metric else 0


def test_a_direct_call_begins_a_trace_of_its_own(observed: Observed) -> None:
    asked = spec(max_new_tokens=4)
    asked.request_id = "direct"
    events = list(observed.server.generation.StreamGenerate(stream(asked)))
    assert events[-1].WhichOneof("event") == "finished"
    spans = observed.receiver.trace_of("direct")
    assert spans[0].parent == ""
    assert {span.service for span in spans} == {"vdiff-grpc"}
