"""The trace that a call belongs to, and whether spans of it are exported. Imports no SDK by itself.

A trace travels as W3C's `traceparent` and `tracestate`, in HTTP headers and in gRPC metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from vdiff_grpc.errors import VdiffError
from vdiff_grpc.meters import Meters

if TYPE_CHECKING:
    from vdiff_grpc.otlp.exporting import Exporting

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

SpanKind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float | list[str]]

# A later version may have more behind the flags; ff is none.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_MAX_STATE = 512
_SAMPLED = 1

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class TelemetryError(VdiffError):
    """OTLP export was asked for and cannot be had."""

    reason = "TELEMETRY"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span's place in its trace: ids in hex. state: of other vendors, passed on as it came."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What to send on for this span to be the next one's parent."""
        flags = "01" if self.is_sampled else "00"
        parent = (TRACEPARENT, f"00-{self.trace_id}-{self.span_id}-{flags}")
        return (parent, (TRACESTATE, self.state)) if self.state else (parent,)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a measured value to its trace, where one will be found there."""
        return {"trace_id": self.trace_id, "span_id": self.span_id} if self.is_sampled else None


class Span(Protocol):
    """A span that has begun."""

    @property
    def place(self) -> TraceContext: ...

    def child(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        begin_ns: int | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """begin_ns: time.monotonic_ns(); None is now."""
        ...

    def end(
        self,
        *,
        end_ns: int | None = None,
        attributes: Attributes | None = None,
        error: str = "",
        name: str = "",
    ) -> None:
        """Hands it to the exporter. name: another than at the beginning. error: its type; the span's status is ERROR then."""
        ...


class Tracer(Protocol):
    def begin(
        self, name: str, parent: TraceContext | None, attributes: Attributes | None = None
    ) -> Span:
        """A span of kind server. attributes: what the sampler may go by."""
        ...


# The span in whose task we are, or without exported traces the caller's.
current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def parse(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """The caller's span. None: there is none, or it cannot be read."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[2] == _NO_TRACE or match[3] == _NO_SPAN:
        return None
    if match[1] == "00" and match[5]:
        return None
    fit = len(tracestate) <= _MAX_STATE and tracestate.isascii() and tracestate.isprintable()
    is_sampled = bool(int(match[4], 16) & _SAMPLED)
    return TraceContext(match[2], match[3], is_sampled, tracestate if fit else "")


def log_fields() -> dict[str, str]:
    """What a log line says of the trace that it belongs to."""
    context = current.get()
    return {} if context is None else {"trace_id": context.trace_id, "span_id": context.span_id}


def exporting(environ: Mapping[str, str], service: str, meters: Meters) -> Exporting | None:
    """Begins to export by OTLP, as the OTEL_ variables say; None where they ask for nothing.

    service: service.name where they do not give one. Raises TelemetryError.
    """
    signals = wanted(environ)
    if not signals:
        return None
    try:
        from vdiff_grpc.otlp.exporting import Exporting
    except ImportError as error:
        raise TelemetryError(
            f"OTEL_ variables ask for OTLP export, and {error.name} is not installed: "
            "pip install 'vdiff-grpc[telemetry]'"
        ) from None
    return Exporting(environ, signals, service, meters)


def wanted(environ: Mapping[str, str]) -> frozenset[str]:
    """The signals to export: "traces", "metrics".

    One is wanted when it has an endpoint, or its exporter is named otlp.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    found = set()
    for signal in ("traces", "metrics"):
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
        default = "otlp" if environ.get(_ENDPOINT) or environ.get(own) else ""
        exporters = environ.get(f"OTEL_{signal.upper()}_EXPORTER") or default
        if "otlp" in (one.strip() for one in exporters.split(",")):
            found.add(signal)
    return frozenset(found)
