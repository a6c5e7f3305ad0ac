"""What server and gateway show to Prometheus and send by OTLP, and that callers name none of it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import RunningServer, tiny_config
from tests.gateway.conftest import RunningGateway, eventually
from tests.server.calls import PROMPT, generate, long_spec, spec
from tests.telemetry.conftest import Observed
from vdiff_grpc import telemetry
from vdiff_grpc.keys import digest
from vdiff_grpc.meters import Meters
from vdiff_grpc.server.app import AddressError
from vdiff_grpc.tracing import TelemetryError, exporting

Serve = Callable[..., RunningServer]
ODD = "OddNameOfACaller"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def page(server: RunningServer, accept: str = "") -> str:
    reply = httpx.get(f"http://{server.server.metrics_address}/metrics", headers={"accept": accept})
    assert reply.status_code == 200
    return reply.text


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and sorted labels, NAME=VALUE each."""
    return {
        (sample.name, *sorted(f"{k}={v}" for k, v in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def families(text: str) -> set[str]:
    """The names of ours."""
    kinds = (line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
    ours = {name for name in kinds if not name.startswith(("process_", "python_"))}
    return {name.removesuffix("_total") for name in ours if not name.endswith("_created")}


def value(text: str, name: str, *labels: str) -> float:
    """The sum of all series of this name with these labels."""
    return sum(
        number for (one, *given), number in samples(text).items()
        if one == name and set(labels) <= set(given)
    )  # fmt: skip


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve(metrics_port=free_port())


def test_every_metric_of_the_server_is_named_in_one_place_and_there_from_the_start(
    server: RunningServer,
) -> None:
    assert families(page(server)) == {one.family for one in telemetry.SERVER_METRICS}


def test_a_finished_request_is_counted_in_all_its_aspects(server: RunningServer) -> None:
    reply = server.generation.Generate(generate(spec(max_new_tokens=16)))
    server.wait_idle()
    text, metrics = page(server), reply.metrics
    served = ("gen_ai_request_model=tiny", "gen_ai_operation_name=text_completion")
    assert value(text, "gen_ai_server_request_duration_seconds_count", *served) == 1
    assert value(text, "gen_ai_server_time_to_first_token_seconds_count", *served) == 1
    first_s = metrics.time_to_first_commit_ns / 1e9
    shown = value(text, "gen_ai_server_time_to_first_token_seconds_sum", *served)
    assert shown == pytest.approx(first_s)
    rest_s = metrics.total_time_ns / 1e9 - first_s
    shown = value(text, "gen_ai_server_time_per_output_token_seconds_sum")
    assert shown == pytest.approx(rest_s / 15)
    tokens = "gen_ai_client_token_usage_sum"
    assert value(text, tokens, "gen_ai_token_type=input") == len(PROMPT)
    assert value(text, tokens, "gen_ai_token_type=output") == 16
    assert value(text, "vdiff_tokens_completion_total") == 16
    assert value(text, "vdiff_forward_passes_total") == metrics.forward_passes
    assert value(text, "vdiff_engine_steps_total") == value(text, "vdiff_step_rows_count")
    assert value(text, "vdiff_requests_total", "vdiff_outcome=finished") == 1
    assert value(text, "vdiff_engine_ready") == 1
    called = ("rpc_method=vdiff.v1.GenerationService/Generate", "rpc_response_status_code=OK")
    assert value(text, "rpc_server_call_duration_seconds_count", *called) == 1


def test_waiting_and_running_rows_are_shown_and_a_call_that_left_is_counted_as_cancelled(
    serve: Serve,
) -> None:
    server = serve(metrics_port=free_port(), max_running_rows=1)
    calls = [server.generation.Generate.future(generate(long_spec())) for _ in range(3)]
    eventually(
        lambda: (
            (
                value(page(server), "vdiff_rows_waiting"),
                value(page(server), "vdiff_rows_running"),
            )
            == (2, 1)
        )
    )
    assert value(page(server), "vdiff_calls_open") == 3
    for call in calls:
        call.cancel()
    server.wait_idle()
    eventually(lambda: value(page(server), "vdiff_rows_running") == 0)
    text = page(server)
    assert value(text, "vdiff_rows_waiting") == value(text, "vdiff_calls_open") == 0
    cancelled = "rpc_response_status_code=CANCELLED"
    assert value(text, "rpc_server_call_duration_seconds_count", cancelled) == 3
    assert value(text, "vdiff_requests_total", "vdiff_outcome=aborted") == 3


def test_no_label_is_what_a_caller_has_chosen(server: RunningServer) -> None:
    wrong = spec()
    wrong.model = ODD
    with pytest.raises(grpc.RpcError):
        server.generation.Generate(generate(wrong))
    assert server.channel is not None
    with pytest.raises(grpc.RpcError):
        server.channel.unary_unary(f"/vdiff.v1.GenerationService/{ODD}")(b"")
    server.wait_idle()
    text = page(server)
    assert ODD not in text
    assert value(text, "vdiff_errors_total", "vdiff_reason=MODEL_NOT_FOUND") == 1
    assert value(text, "gen_ai_server_request_duration_seconds_count", "gen_ai_request_model=_OTHER") == 1  # fmt: skip


def test_whoever_is_turned_away_at_the_door_is_counted_and_names_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps(
            {
                "keys": [
                    {"name": "one", "sha256": [digest("right-key-1234567")], "rights": ["generate"]}
                ]
            }
        )
    )
    server = serve(metrics_port=free_port(), api_keys=str(keys))
    assert server.channel is not None
    for method in (f"/{ODD}/{ODD}", "/vdiff.v1.GenerationService/Generate"):
        with pytest.raises(grpc.RpcError) as refused:
            server.channel.unary_unary(method)(b"", metadata=(("authorization", f"Bearer {ODD}"),))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    text = page(server)
    assert ODD not in text
    assert value(text, "vdiff_errors_total", "vdiff_reason=UNAUTHENTICATED") == 2
    counted = "rpc_server_call_duration_seconds_count"
    for method in ("_OTHER", "vdiff.v1.GenerationService/Generate"):
        labels = (f"rpc_method={method}", "rpc_response_status_code=UNAUTHENTICATED")
        assert value(text, counted, *labels) == 1


def test_the_page_answers_nothing_but_itself(server: RunningServer) -> None:
    url = f"http://{server.server.metrics_address}"
    assert httpx.get(f"{url}/").status_code == 404
    assert httpx.post(f"{url}/metrics").status_code == 405
    head = httpx.head(f"{url}/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    host, port = server.server.metrics_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(b"GET /" + b"x" * 10_000)
        assert _rest(peer) == b""


def test_peers_that_stall_take_no_more_than_their_places(server: RunningServer) -> None:
    host, port = server.server.metrics_address.split(":")
    address = (host, int(port))
    held = [socket.create_connection(address, timeout=10) for _ in range(16)]
    try:
        with socket.create_connection(address, timeout=10) as one_more:
            assert _rest(one_more) == b""
    finally:
        for peer in held:
            peer.close()
    eventually(lambda: _answers(server))


def _rest(peer: socket.socket) -> bytes:
    try:
        return peer.recv(100)
    except ConnectionResetError:
        return b""


def _answers(server: RunningServer) -> bool:
    try:
        return bool(page(server))
    except httpx.HTTPError:
        return False


def test_a_port_that_is_taken_ends_the_start_with_the_flag_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = RunningServer(tiny_config(metrics_port=port))
        with pytest.raises(AddressError, match=rf"127\.0\.0\.1:{port}.*--metrics-port"):
            server.start()
        server.close()


def test_the_gateways_metrics_are_the_named_ones_without_a_callers_words(
    gateway_over: Callable[..., RunningGateway], server: RunningServer
) -> None:
    gateway = gateway_over(server.address)
    httpx.request(ODD.upper(), f"{gateway.url}/v1/models")
    httpx.get(f"{gateway.url}/v1/models/{ODD}")
    text = httpx.get(f"{gateway.url}/metrics").text
    assert families(text) == {one.family for one in telemetry.GATEWAY_METRICS}
    assert ODD.lower() not in text.lower()


def test_what_is_sent_by_otlp_is_what_prometheus_reads_and_leads_to_its_trace(
    observed: Observed,
) -> None:
    headers = {"x-request-id": "counted"}
    body = {"prompt": "x", "max_tokens": 8, "ignore_eos": True}
    httpx.post(f"{observed.gateway.url}/v1/completions", headers=headers, json=body, timeout=60)
    trace = observed.receiver.trace_of("counted", 2)[0].trace
    sent = ("vdiff-grpc", "gen_ai.server.request.duration")

    def leads_there(receiver: Any) -> bool:
        found = receiver.metrics.get(sent)
        return found is not None and trace in {
            exemplar.trace_id.hex()
            for point in found.histogram.data_points
            for exemplar in point.exemplars
        }

    observed.receiver.wait_for(leads_there)
    metric = observed.receiver.metrics[sent]
    (point,) = metric.histogram.data_points
    given = {pair.key: pair.value.string_value for pair in point.attributes}
    assert given == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "demo",
        "gen_ai.provider.name": "vdiff",
    }
    assert (metric.unit, sum(point.bucket_counts)) == ("s", point.count)
    text, _ = observed.server.server._observer.meters.page("")
    shown = value(text.decode(), "gen_ai_server_request_duration_seconds_sum")
    assert point.sum == pytest.approx(shown)
    names = {name for service, name in observed.receiver.metrics if service == "vdiff-grpc"}
    assert names == {one.name for one in telemetry.SERVER_METRICS}
    steps = observed.receiver.metrics["vdiff-grpc", "vdiff.engine.steps"]
    assert steps.sum.is_monotonic
    text, _ = observed.server.server._observer.meters.page("application/openmetrics-text")
    assert f'trace_id="{trace}"' in text.decode()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, text)
    with pytest.raises(TelemetryError, match=text):
        exporting(os.environ, "x", Meters())


def test_the_documentation_has_every_name() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text()
    for one in (*telemetry.SERVER_METRICS, *telemetry.GATEWAY_METRICS):
        shown = one.family + ("_total" if one.kind == "counter" else "")
        attributes = ", ".join(f"`{name}`" for name in one.attributes)
        assert (
            f"| `{one.name}` | `{shown}` | {one.kind} | {attributes} | {one.description} |" in text
        )


def test_names_are_those_that_other_pieces_go_by() -> None:
    assert telemetry.ROWS_WAITING.name == "vdiff.rows.waiting"
    assert telemetry.ROWS_WAITING.series == ("vdiff_rows_waiting",)
    families = [one.family for one in (*telemetry.SERVER_METRICS, *telemetry.GATEWAY_METRICS)]
    assert len(set(families)) == len(families)
