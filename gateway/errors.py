"""Owns every error a client can see: OpenAI's shape, and the one table from gRPC to HTTP.

ApiError            an answer in OpenAI's error shape
ClientGoneError     the client left; there is nobody to answer
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import msgspec
from google.rpc import error_details_pb2, status_pb2

_ENCODER = msgspec.json.Encoder()

# The OpenAI clients give up on a reply that asks for a longer pause.
_MAX_RETRY_AFTER_S = 120


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error: `code` and `param` are strings or null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct, frozen=True):
    error: ErrorObject


class ApiError(Exception):
    """One reply that is not a success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.reply = ErrorReply(ErrorObject(message, kind, param, code))

    def body(self) -> bytes:
        return _ENCODER.encode(self.reply)


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """A request that cannot be honoured."""
    return ApiError(400, message, param=param, code=code)


def missing(path: str) -> ApiError:
    return invalid(f"{path} is required", path, "missing_required_parameter")


def unsupported(param: str, message: str) -> ApiError:
    """A field that is part of OpenAI's API and not of this server's."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def unknown_url(what: str) -> ApiError:
    return ApiError(404, f"unknown request URL: {what}", code="unknown_url")


def internal(message: str = "the gateway met an internal error") -> ApiError:
    """Our own bug, or the server's: the same request would meet it again."""
    return ApiError(
        500,
        message,
        kind="server_error",
        code="internal_error",
        headers={"x-should-retry": "false"},
    )


def own_key_refused() -> ApiError:
    """Nothing that the client could mend."""
    return ApiError(
        503,
        "the model server does not accept the gateway's own API key",
        kind="server_error",
        code="unavailable",
        headers={"x-should-retry": "false"},
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "the gateway is shutting down",
        kind="server_error",
        code="unavailable",
        headers={"retry-after": "1"},
    )


# --- from gRPC --------------------------------------------------------------

# status -> (HTTP status, OpenAI's error type, code when the server names no reason)
_STATUS: dict[grpc.StatusCode, tuple[int, str, str | None]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error", None),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_request_error", None),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error", None),
    grpc.StatusCode.UNAUTHENTICATED: (401, "invalid_request_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error", "permission_denied"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error", "not_found"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "rate_limit_exceeded"),
    grpc.StatusCode.CANCELLED: (499, "server_error", "cancelled"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "server_error", "unimplemented"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error", "unavailable"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error", "timeout"),
}
_RETRY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_TOO_LARGE = re.compile(r"(Received|Sent) message larger than max")


def from_rpc(
    error: grpc.aio.AioRpcError, rename: Callable[[str], str | None] = lambda path: path
) -> ApiError:
    """Turn a gRPC status into OpenAI's error.

    rename: from a field's path in GenerationSpec (`sampling.max_new_tokens`) to the name that
    the client used, None where it has none.
    """
    code = grpc.StatusCode.UNAVAILABLE if is_unavailable(error) else error.code()
    reason, violations, retry_after_s = _details(error)
    message = error.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(message):
        return ApiError(
            413,
            "the request is larger than the model server accepts",
            code="request_too_large",
        )
    if code not in _STATUS:
        # Its text is for the server's log, unless the server itself chose it for us.
        return internal(message if reason else "the model server met an internal error")
    status, kind, api_code = _STATUS[code]
    if not reason:  # not from the server's own code: addresses and file names may be in it
        message = _plain_message(code, message)
    param = None
    if status == 400 and violations:
        param = rename(violations[0][0].removeprefix("spec."))
        message = "; ".join(_in_their_words(*violation, rename) for violation in violations)
    elif reason == "MODEL_NOT_FOUND":
        param, api_code = "model", "model_not_found"
    elif reason == "QUEUE_FULL":
        api_code = "queue_full"
    headers = {}
    if code is grpc.StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    if code in _RETRY:
        wait_s = 1 if retry_after_s is None else math.ceil(retry_after_s)
        headers["retry-after"] = str(min(max(wait_s, 1), _MAX_RETRY_AFTER_S))
    return ApiError(status, message, kind=kind, param=param, code=api_code, headers=headers)


def is_unavailable(error: grpc.aio.AioRpcError) -> bool:
    """Whether there was no server for the call. One that stops at once cancels what it has:
    CANCELLED without the reason that our server gives when somebody asked for it."""
    code = error.code()
    return code is grpc.StatusCode.UNAVAILABLE or (
        code is grpc.StatusCode.CANCELLED and not _details(error)[0]
    )


def retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """How long the server asks to wait; None when it does not say."""
    return _details(error)[2]


def _details(
    error: grpc.aio.AioRpcError,
) -> tuple[str, list[tuple[str, str]], float | None]:
    """ErrorInfo's reason, BadRequest's (field, description), RetryInfo's seconds."""
    reason, violations, retry_after_s = "", [], None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                reason = info.reason
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                violations = [(v.field, v.description) for v in bad.field_violations]
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    return reason, violations, retry_after_s


def _in_their_words(path: str, description: str, rename: Callable[[str], str | None]) -> str:
    """The description with the client's own names of its fields."""
    path = path.removeprefix("spec.")
    param = rename(path)
    if param and description.startswith(path):
        return param + description[len(path) :]
    return description.replace("max_new_tokens", rename("sampling.max_new_tokens") or "max_tokens")


def _plain_message(code: grpc.StatusCode, message: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return "the model server cannot be reached"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "the request took longer than the time limit"
    return message or f"the model server answered {code.name}"


# --- from JSON --------------------------------------------------------------

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (missing required|contains unknown) field `(?P<name>.*)`$")
_TYPES = re.compile(r"`([^`]*)`")
_TYPE_NAMES = {"int": "integer", "str": "string", "float": "number", "bool": "boolean"}
_PATH_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_MAX_VALUE_CHARS = 60


def from_json(
    error: Exception, body: bytes, choices: Mapping[str, Sequence[str]] | None = None
) -> ApiError:
    """Say which field of `body` is wrong, its value, and what was expected.

    error: what msgspec raised when it decoded `body`. choices: the values of fields that have
    only a few, by the field's own name.
    """
    if not isinstance(error, msgspec.ValidationError):
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        return invalid(f"the request body is not valid JSON: {why}", None, "invalid_json")
    match = _AT.match(str(error))
    assert match is not None
    # What stands in an object of free keys is told by the object's name.
    what, path = match["what"], (match["path"] or "").removesuffix("[...]")
    if field := _FIELD.match(what):
        param = f"{path}.{field['name']}" if path else field["name"]
        if what.startswith("Object missing"):
            return invalid(f"{param} is required", param, "missing_required_parameter")
        return invalid(f"{param} is not a field of {path or 'the request'}", param)
    expected = _TYPES.sub(_plain_type, what[0].lower() + what[1:])
    if not path:
        return invalid(f"the request body is wrong: {expected}", None, "invalid_type")
    code = "invalid_type" if ", got " in expected else "invalid_value"
    allowed = (choices or {}).get(path.rsplit(".", 1)[-1])
    if allowed and code == "invalid_value":
        expected = f"expected one of {', '.join(allowed)}"
    return invalid(f"{path} ({_shown(body, path)}): {expected}", path, code)


def _plain_type(match: re.Match[str]) -> str:
    names = match[1].split(" | ")
    return " or ".join(_TYPE_NAMES.get(name, name) for name in names)


def _shown(body: bytes, path: str) -> str:
    """The value at `path` as JSON, cut to a length fit for a message."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "..."  # after the wrong value the body is not even JSON
    for name, index in _PATH_STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return "?"
    text = _ENCODER.encode(value).decode()
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."
