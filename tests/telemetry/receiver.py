"""A real OTLP receiver, by gRPC and by HTTP, that keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric


@dataclass(frozen=True, slots=True)
class Span:
    """Ids in hex; parent empty for a root."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    is_error: bool


@dataclass
class Receiver(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
    """Both services. payload: every message as it came, for a search of its bytes."""

    spans: list[Span] = field(default_factory=list)
    metrics: dict[tuple[str, str], Metric] = field(default_factory=dict)  # by service and name
    payload: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    endpoint: str = ""
    http_endpoint: str = ""

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    def wait_for(self, done: Any, timeout_s: float = 20.0) -> Any:
        """What `done(self)` gives once it is true."""
        with self._changed:
            self._changed.wait_for(lambda: done(self), timeout_s)
            found = done(self)
        assert found, [(span.service, span.name, span.attributes) for span in self.spans]
        return found

    def trace_of(self, request_id: str, num_servers: int = 1) -> list[Span]:
        """The trace in which so many spans of kind SERVER have this request id, by time."""

        def find(receiver: Receiver) -> list[Span]:
            own = [
                span
                for span in receiver.spans
                if span.attributes.get("vdiff.request.id") == request_id
            ]
            if len(own) < num_servers:
                return []
            assert len({span.trace for span in own}) == 1, own
            found = [span for span in receiver.spans if span.trace == own[0].trace]
            return sorted(found, key=lambda span: (span.begin_ns, -span.end_ns))

        spans: list[Span] = self.wait_for(find)
        return spans

    # --- the services -------------------------------------------------------

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        if context is not None:
            self._keep_headers(dict(context.invocation_metadata()))
        if isinstance(request, trace_pb2.ExportTraceServiceRequest):
            self._take_spans(request)
            return trace_pb2.ExportTraceServiceResponse()
        self._take_metrics(request)
        return metrics_pb2.ExportMetricsServiceResponse()

    def _keep_headers(self, headers: dict[str, str]) -> None:
        with self._changed:
            self.headers.append(headers)

    def _take_spans(self, request: trace_pb2.ExportTraceServiceRequest) -> None:
        with self._changed:
            self.payload.append(request.SerializeToString())
            for group in request.resource_spans:
                service = _values(group.resource.attributes)["service.name"]
                for span in (one for scope in group.scope_spans for one in scope.spans):
                    self.spans.append(
                        Span(
                            service,
                            span.name,
                            span.kind,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _values(span.attributes),
                            span.status.code == span.status.STATUS_CODE_ERROR,
                        )
                    )
            self._changed.notify_all()

    def _take_metrics(self, request: metrics_pb2.ExportMetricsServiceRequest) -> None:
        with self._changed:
            self.payload.append(request.SerializeToString())
            for group in request.resource_metrics:
                service = _values(group.resource.attributes)["service.name"]
                for metric in (one for scope in group.scope_metrics for one in scope.metrics):
                    self.metrics[service, metric.name] = metric
            self._changed.notify_all()


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_grpc.add_TraceServiceServicer_to_server(receiver, server)
    metrics_grpc.add_MetricsServiceServicer_to_server(receiver, server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    receiver.http_endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield receiver
    http.shutdown()
    thread.join()
    http.server_close()
    server.stop(None).wait()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    kinds = {
        "/v1/traces": trace_pb2.ExportTraceServiceRequest,
        "/v1/metrics": metrics_pb2.ExportMetricsServiceRequest,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            receiver._keep_headers({name.lower(): value for name, value in self.headers.items()})
            receiver.Export(kinds[self.path].FromString(body), None)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _values(attributes: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        kind = pair.value.WhichOneof("value")
        found = getattr(pair.value, kind)
        return [one.string_value for one in found.values] if kind == "array_value" else found

    return {pair.key: value(pair) for pair in attributes}
