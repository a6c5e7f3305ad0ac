"""What the gateway counts about itself, and /metrics for Prometheus to read.

Names follow OpenTelemetry's HTTP conventions (semantic-conventions 1.37) as its Prometheus exporter
writes them; what has none there is under `vdiff_gateway_`. The server counts tokens and forward
passes. No label has a value that a client may choose.
"""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

# Of a refusal in milliseconds to a long answer.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class GatewayMetrics:
    """One gateway's; `endpoint` answers GET /metrics."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("vdiff_gateway_build", "Version of the gateway.", registry=registry).info(
            {"version": version("vdiff-grpc")}
        )
        self._duration = Histogram(
            "http_server_request_duration_seconds",
            "From a request's headers to the end of its answer; status 499: the client had left.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._active = Gauge(
            "http_server_active_requests", "Requests being answered.", registry=registry
        )
        self._first_byte = Histogram(
            "vdiff_gateway_time_to_first_event_seconds",
            "From a request's headers to the first event of its stream.",
            ("http_route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._limited = Counter(
            "vdiff_gateway_rate_limited_requests",
            "Requests refused by the gateway's own limit.",
            registry=registry,
        )
        self._retries = Counter(
            "vdiff_gateway_upstream_retries",
            "Calls to the model server that were made again after UNAVAILABLE.",
            registry=registry,
        )
        self._failures = Counter(
            "vdiff_gateway_upstream_errors",
            "Calls to the model server that ended in an error, after retries.",
            ("rpc_response_status_code",),
            registry=registry,
        )

    def begun(self) -> None:
        self._active.inc()

    def ended(self, method: str, route: str, status: int, seconds: float) -> None:
        self._active.dec()
        # Names of its own a client may send as many as it likes.
        known = method if method in _METHODS else "_OTHER"
        self._duration.labels(known, route, str(status)).observe(seconds)

    def first_event(self, route: str, seconds: float) -> None:
        self._first_byte.labels(route).observe(seconds)

    def rate_limited(self) -> None:
        self._limited.inc()

    def retried(self) -> None:
        self._retries.inc()

    def upstream_failed(self, code: str) -> None:
        self._failures.labels(code).inc()

    async def endpoint(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})
