"""Sets up the export of spans and metrics as the OTEL_ variables say, and ends it.

From the SDK come resource, sampler, batches and exporters, and what its variables say of them. Not its
spans and instruments, which cost several times what these do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from vdiff_grpc.meters import Meters
from vdiff_grpc.otlp.metrics import PeriodicMetrics
from vdiff_grpc.otlp.spans import Tracer
from vdiff_grpc.tracing import TelemetryError

_log = logging.getLogger(__name__)

_GRPC, _HTTP = "grpc", "http/protobuf"
_UNKNOWN_SERVICE = "unknown_service"
_INTERVAL_MS = 60_000
# A receiver that does not answer must not hold up the end.
_LAST_WORDS_S = 3.0


class Exporting:
    """What is exported, until `shutdown`. tracer: None where metrics alone are."""

    def __init__(
        self, environ: Mapping[str, str], signals: frozenset[str], service: str, meters: Meters
    ) -> None:
        """Raises TelemetryError. Connects when there is something to send."""
        self.tracer: Tracer | None = None
        self._processor: BatchSpanProcessor | None = None
        self._metrics: PeriodicMetrics | None = None
        resource = Resource.create({"service.version": version("vdiff-grpc")})
        if str(resource.attributes[SERVICE_NAME]).startswith(_UNKNOWN_SERVICE):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        try:
            if "traces" in signals:
                provider = TracerProvider(resource=resource, shutdown_on_exit=False)
                self._processor = BatchSpanProcessor(_span_exporter(environ, resource))
                self.tracer = Tracer(provider.sampler, provider.id_generator, self._processor)
            if "metrics" in signals:
                interval_s = _interval_s(environ)
                exporter = _metric_exporter(environ)
                self._metrics = PeriodicMetrics(exporter, meters, resource, interval_s)
        except TelemetryError:
            raise
        except Exception as error:  # what the SDK makes of a wrong variable, by many names
            raise TelemetryError(f"OTLP export cannot be set up: {error}") from error
        _log.info("exporting %s by OTLP", " and ".join(sorted(signals)))

    def shutdown(self) -> None:
        """Sends what is left; returns within a few seconds, whatever the receiver does."""
        ends = [one.shutdown for one in (self._processor, self._metrics) if one is not None]
        threads = [threading.Thread(target=end, daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _LAST_WORDS_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _span_exporter(environ: Mapping[str, str], resource: Resource) -> SpanExporter:
    if _protocol(environ, "TRACES") == _GRPC:
        from vdiff_grpc.otlp.by_grpc import SpansByGrpc

        return SpansByGrpc(resource)
    from vdiff_grpc.otlp.by_http import SpansByHttp

    return SpansByHttp(resource)


def _metric_exporter(environ: Mapping[str, str]) -> MetricExporter:
    if _protocol(environ, "METRICS") == _GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as ByHttp

    return ByHttp()


def _protocol(environ: Mapping[str, str], signal: str) -> str:
    """As Python's SDK has it, gRPC where nothing is said. Raises TelemetryError."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if given := environ.get(name, "").strip():
            if given not in (_GRPC, _HTTP):
                raise TelemetryError(f"{name} ({given}) is neither {_GRPC} nor {_HTTP}")
            return given
    return _GRPC


def _interval_s(environ: Mapping[str, str]) -> float:
    """Raises TelemetryError."""
    text = environ.get("OTEL_METRIC_EXPORT_INTERVAL") or str(_INTERVAL_MS)
    if not text.isdecimal() or int(text) == 0:
        raise TelemetryError(f"OTEL_METRIC_EXPORT_INTERVAL ({text}) is not milliseconds above 0")
    return int(text) / 1e3
