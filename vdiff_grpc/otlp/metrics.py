"""Sends what Meters holds, as OpenTelemetry's metrics, at an interval."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
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
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from vdiff_grpc.meters import Meters
from vdiff_grpc.telemetry import SCHEMA_URL, SCOPE, Instrument

_log = logging.getLogger(__name__)


class PeriodicMetrics:
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
