"""Sends spans and metrics to an OTLP receiver, with OpenTelemetry's SDK. Imported only when asked for.

The SDK's resource, sampler, batches and exporters, and what its environment variables say of them. Not its
spans and instruments: a span here is made whole when it ends (2 us where the SDK's own takes 14), and
metrics are what Meters has at the time. Spans hold no texts, only names, numbers and ids.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from vdiff_grpc import tracing
from vdiff_grpc.meters import Meters
from vdiff_grpc.telemetry import SCHEMA_URL, SCOPE, Instrument
from vdiff_grpc.tracing import Attributes, TelemetryError, TraceContext

_log = logging.getLogger(__name__)

_GRPC, _HTTP = "grpc", "http/protobuf"
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_FLAGS = {True: TraceFlags(TraceFlags.SAMPLED), False: TraceFlags(TraceFlags.DEFAULT)}
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
        self._metrics: _PeriodicMetrics | None = None
        own = {"service.version": version("vdiff-grpc")}
        resource = Resource.create(own)
        if str(resource.attributes[SERVICE_NAME]).startswith(_UNKNOWN_SERVICE):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        try:
            if "traces" in signals:
                provider = TracerProvider(resource=resource, shutdown_on_exit=False)
                self._processor = BatchSpanProcessor(_span_exporter(environ))
                self.tracer = Tracer(provider, self._processor)
            if "metrics" in signals:
                self._metrics = _PeriodicMetrics(
                    _metric_exporter(environ), meters, resource, _interval_s(environ)
                )
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


class Tracer:
    """Begins spans. The sampler is asked once for a call; its other spans go with that."""

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._resource = provider.resource
        self._scope = InstrumentationScope(SCOPE, version("vdiff-grpc"), SCHEMA_URL)
        self._processor = processor

    def begin(
        self, name: str, parent: TraceContext | None, attributes: Attributes | None = None
    ) -> Span:
        trace_id, known, context = self._ids.generate_trace_id(), None, None
        if parent is not None:
            trace_id = int(parent.trace_id, 16)
            state = TraceState.from_header([parent.state]) if parent.state else None
            known = SpanContext(
                trace_id, int(parent.span_id, 16), True, _FLAGS[parent.is_sampled], state
            )
            context = set_span_in_context(NonRecordingSpan(known))
        asked = self._sampler.should_sample(
            context, trace_id, name, SpanKind.SERVER, dict(attributes or {})
        )
        flags = _FLAGS[asked.decision is Decision.RECORD_AND_SAMPLE]
        own = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, asked.trace_state)
        found = {**(attributes or {}), **(asked.attributes or {})}
        # A call's times are of the clock that never jumps, carried over to the calendar's once.
        now = time.monotonic_ns()
        return Span(self, name, "server", own, known, now, time.time_ns() - now, found)

    def next_to(self, parent: SpanContext) -> SpanContext:
        return SpanContext(
            parent.trace_id,
            self._ids.generate_span_id(),
            False,
            parent.trace_flags,
            parent.trace_state,
        )

    def emit(self, span: Span, end_ns: int, error: bool) -> None:
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=span.own,
                parent=span.parent,
                resource=self._resource,
                attributes=span.attributes,
                kind=_KINDS[span.kind],
                status=_ERROR if error else _UNSET,
                start_time=span.begin_ns + span.epoch_ns,
                end_time=end_ns + span.epoch_ns,
                instrumentation_scope=self._scope,
            )
        )


_ERROR, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


class Span:
    """See tracing.Span. Not sampled: it has a place in the trace, and nothing of it is kept."""

    __slots__ = ("_tracer", "attributes", "begin_ns", "epoch_ns", "kind", "name", "own", "parent")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: tracing.SpanKind,
        own: SpanContext,
        parent: SpanContext | None,
        begin_ns: int,
        epoch_ns: int,
        attributes: Attributes,
    ) -> None:
        self._tracer = tracer
        self.name = name
        self.kind: tracing.SpanKind = kind
        self.own = own
        self.parent = parent
        self.begin_ns = begin_ns
        self.epoch_ns = epoch_ns
        self.attributes = attributes

    @property
    def context(self) -> TraceContext:
        own = self.own
        state = own.trace_state.to_header() if own.trace_state else ""
        return TraceContext(
            f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled, state
        )

    def child(
        self,
        name: str,
        *,
        kind: tracing.SpanKind = "internal",
        begin_ns: int | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        begin_ns = time.monotonic_ns() if begin_ns is None else begin_ns
        own = self._tracer.next_to(self.own)
        return Span(
            self._tracer, name, kind, own, self.own, begin_ns, self.epoch_ns, attributes or {}
        )

    def end(
        self,
        *,
        end_ns: int | None = None,
        attributes: Attributes | None = None,
        error: str = "",
        name: str = "",
    ) -> None:
        if not self.own.trace_flags.sampled:
            return
        self.name = name or self.name
        if attributes or error:
            self.attributes = {**self.attributes, **(attributes or {})}
            if error:
                self.attributes["error.type"] = error
        self._tracer.emit(self, time.monotonic_ns() if end_ns is None else end_ns, bool(error))


class _PeriodicMetrics:
    """Sends all metrics at an interval, and once more at the end."""

    def __init__(
        self, exporter: MetricExporter, meters: Meters, resource: Resource, interval_s: float
    ) -> None:
        self._exporter = exporter
        self._meters = meters
        self._resource = resource
        self._scope = InstrumentationScope(SCOPE, version("vdiff-grpc"), SCHEMA_URL)
        self._start_ns = time.time_ns()
        self._interval_s = interval_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        self._ending.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(self._interval_s)
            try:
                self._exporter.export(self._data())
            except Exception:
                _log.exception("the metrics could not be sent")

    def _data(self) -> MetricsData:
        now = time.time_ns()
        known = self._meters.instruments
        metrics = [
            _metric(known[family.name], family, self._start_ns, now)
            for family in self._meters.collect()
            if family.name in known  # the process's own are Prometheus' alone
        ]
        scope = ScopeMetrics(self._scope, metrics, SCHEMA_URL)
        return MetricsData([ResourceMetrics(self._resource, [scope], self._resource.schema_url)])


def _metric(instrument: Instrument, family: Family, start_ns: int, now: int) -> Metric:
    data: Sum | Gauge | Histogram
    if instrument.kind == "histogram":
        points = [
            _histogram_point(attributes, samples, start_ns, now)
            for attributes, samples in _by_attributes(instrument, family.samples)
        ]
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
    else:
        values = [
            NumberDataPoint(_attributes(instrument, sample), start_ns, now, sample.value)
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]
        data = Gauge(values)
        if instrument.kind == "counter":
            data = Sum(values, AggregationTemporality.CUMULATIVE, True)
    return Metric(instrument.name, instrument.description, instrument.unit, data)


def _by_attributes(
    instrument: Instrument, samples: Iterable[Sample]
) -> Iterable[tuple[dict[str, str], list[Sample]]]:
    """The samples of each histogram of a family, which stand one after the other."""
    found: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in samples:
        found.setdefault(tuple(_attributes(instrument, sample).items()), []).append(sample)
    return ((dict(attributes), some) for attributes, some in found.items())


def _histogram_point(
    attributes: dict[str, str], samples: list[Sample], start_ns: int, now: int
) -> HistogramDataPoint:
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    totals = [int(bucket.value) for bucket in buckets]  # each holds those before it
    (total,) = (sample.value for sample in samples if sample.name.endswith("_sum"))
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=start_ns,
        time_unix_nano=now,
        count=totals[-1],
        sum=total,
        bucket_counts=[more - less for less, more in zip([0, *totals], totals, strict=False)],
        explicit_bounds=[float(bucket.labels["le"]) for bucket in buckets[:-1]],
        min=None,  # type: ignore[arg-type]  # not recorded; the encoder leaves it out
        max=None,  # type: ignore[arg-type]
        exemplars=[found for bucket in buckets if (found := _exemplar(bucket))],
    )


def _exemplar(bucket: Sample) -> Exemplar | None:
    known = bucket.exemplar
    if known is None:
        return None
    ids = {name: int(value, 16) for name, value in known.labels.items()}
    when = int(float(known.timestamp or time.time()) * 1e9)
    return Exemplar({}, known.value, when, **ids)


def _attributes(instrument: Instrument, sample: Sample) -> dict[str, str]:
    """Under their own names; an empty label is none."""
    names = (*instrument.attributes, *dict(instrument.constant))
    pairs = zip(names, instrument.labels, strict=True)
    return {name: value for name, label in pairs if (value := sample.labels[label])}


def _span_exporter(environ: Mapping[str, str]) -> SpanExporter:
    if _protocol(environ, "TRACES") == _GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as ByHttp

    return ByHttp()


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
