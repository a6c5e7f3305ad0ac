"""Records what telemetry.py names, in memory, for whoever reads it: Prometheus, or the OTLP exporter.

Costs under a microsecond per value; OpenTelemetry's own instruments cost six (measured, CPython
3.11), and need its SDK in a gateway that exports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vdiff_grpc.telemetry import Instrument

Values = Mapping[tuple[str, ...], float]
Recorded = Counter | Gauge | Histogram

_KINDS: dict[str, type[Counter] | type[Gauge]] = {"counter": Counter, "gauge": Gauge}


class Meters:
    """One process's. Each instrument is asked for once."""

    def __init__(self) -> None:
        self.instruments: dict[str, Instrument] = {}  # by family
        self._registry = CollectorRegistry()
        self._children: dict[tuple[str, ...], Recorded] = {}
        self._parents: dict[str, Recorded] = {}
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def record(self, *instruments: Instrument) -> None:
        """Makes them known; those without attributes begin at 0."""
        for one in instruments:
            self.instruments[one.family] = one
            about = (one.family, one.description, one.labels)
            if one.kind == "histogram":
                made: Recorded = Histogram(*about, buckets=one.buckets, registry=self._registry)
            else:
                made = _KINDS[one.kind](*about, registry=self._registry)
            self._parents[one.name] = made
            if not one.labels:
                self._children[(one.name,)] = made

    def read(self, instrument: Instrument, values: Callable[[], Values]) -> None:
        """Asks for the values of a counter or gauge when they are read, by its attributes' values."""
        self.instruments[instrument.family] = instrument
        self._registry.register(_Read(instrument, values))

    def observe(
        self,
        instrument: Instrument,
        value: float,
        *attributes: str,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """For a histogram. attributes: values, in the instrument's order."""
        child = self._child(instrument, attributes)
        assert isinstance(child, Histogram)
        child.observe(value, exemplar)

    def add(self, instrument: Instrument, value: float, *attributes: str) -> None:
        """For a counter, or a gauge that goes up and down."""
        child = self._child(instrument, attributes)
        assert not isinstance(child, Histogram)
        child.inc(value)

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()

    def page(self, accept: str) -> tuple[bytes, str]:
        """For Prometheus: the text and its content type. accept: the header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _child(self, instrument: Instrument, attributes: tuple[str, ...]) -> Recorded:
        key = (instrument.name, *attributes)
        child = self._children.get(key)
        if child is None:
            constant = dict(instrument.constant).values()
            child = self._parents[instrument.name].labels(*attributes, *constant)
            self._children[key] = child
        return child


class _Read(Collector):
    def __init__(self, instrument: Instrument, values: Callable[[], Values]) -> None:
        self._instrument = instrument
        self._values = values

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for attributes, value in self._values().items():
            family.add_metric(attributes, float(value))
        return [family]

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        one = self._instrument
        kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
        return kind(one.family, one.description, labels=one.labels)
