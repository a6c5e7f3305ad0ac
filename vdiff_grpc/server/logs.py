"""How log lines look: text for people, JSON for machines. Fields come in as `extra={"fields": ...}`."""

from __future__ import annotations

import json
import logging
import time
from typing import Any


def configure(log_format: str, log_level: str) -> None:
    """Sends vdiff_grpc's log to stderr. Replaces what an earlier call set up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger("vdiff_grpc")
    logger.handlers[:] = [handler]
    logger.setLevel(log_level.upper())
    logger.propagate = False


class _Formatter(logging.Formatter):
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = staticmethod(time.gmtime)


class _TextFormatter(_Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        pairs = (f"{name}={_word(value)}" for name, value in _fields(record).items())
        return " ".join((super().formatMessage(record), *pairs))


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
    return json.dumps(text) if " " in text or '"' in text else text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
