"""Log lines: text for people, JSON for machines. No prompts, and no line break of a caller's."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec

from vdiff_grpc.tracing import log_fields

_ENCODER = msgspec.json.Encoder(enc_hook=str)


class _Formatter(logging.Formatter):
    """`extra={"fields": {...}}` of a record are its named values."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = staticmethod(time.gmtime)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = getattr(record, "fields", {}) | log_fields()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        exception = fields.pop("exception", "")
        parts = [self.formatTime(record), record.levelname, record.name, record.getMessage()]
        parts += [f"{name}={_one_line(value)}" for name, value in fields.items()]
        # Set off, so that no text inside can be taken for a line of ours.
        traceback = "".join(f"\n  | {_printable(line)}" for line in exception.splitlines())
        return _printable(" ".join(parts)) + traceback


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields(record),
        }
        return _ENCODER.encode(line).decode()


def configure_logging(log_format: str, level: str) -> None:
    """Once, by the process that owns the log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its start and stop lines say what ours say.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _one_line(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else ascii(text)
