"""The SDK's exporter of spans by HTTP, which encodes by itself, at several times the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from vdiff_grpc.otlp.spans import readable


class SpansByHttp(OTLPSpanExporter):
    def __init__(self, resource: Resource) -> None:
        super().__init__()
        self._resource = resource

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return super().export([readable(span, self._resource) for span in spans])
