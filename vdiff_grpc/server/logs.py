"""How log lines look: text for people, JSON for machines. Fields come in as `extra={"fields": ...}`."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from vdiff_grpc import tracing


def configure(log_format: str, log_level: str) -> None:
    """Sends vdiff_grpc's log to stderr, and what export by OTLP complains of. Replaces what an
    earlier call set up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger("vdiff_grpc")
    logger.handlers[:] = [handler]
    logger.setLevel(log_level.upper())
    logger.propagate = False
    exporters = logging.getLogger("opentelemetry")
    exporters.handlers[:] = [handler]
    exporters.propagate = False


def one_line(text: str) -> str:
    """A peer's text, short and without characters that could forge a log line."""
    return text[:128].encode("unicode_escape").decode("ascii")


class _Formatter(logging.Formatter):
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = staticmethod(time.gmtime)


class _TextFormatter(_Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        pairs = (f"{name}={_word(value)}" for name, value in _fields(record).items())
        return _printable(" ".join((super().formatMessage(record), *pairs)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        # Set off, so that no text inside can be taken for a line of ours.
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  | {_printable(line)}" for line in lines)


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _word(value: object) -> str:
    """Quoted where it could be taken for two fields."""
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text or not text.isprintable() else text


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields | tracing.log_fields()
