"""Turns VdiffError into a gRPC status with google.rpc details. The only table of its kind.

A status travels in HTTP/2 trailers, which peers cut off at 8 KiB: texts and lists are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vdiff_grpc.errors import (
    BudgetError,
    CallerLimitError,
    DeadlineError,
    EngineFaultError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuarantinedError,
    QueueFullError,
    QueueTimeoutError,
    RateLimitError,
    RequestCancelledError,
    RequestIdConflictError,
    UnauthenticatedError,
    VdiffError,
)

DOMAIN = "vdiff"

_CODES: dict[type[VdiffError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    RateLimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueTimeoutError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BudgetError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CallerLimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RequestIdConflictError: grpc.StatusCode.ALREADY_EXISTS,
    RequestCancelledError: grpc.StatusCode.CANCELLED,
    QuarantinedError: grpc.StatusCode.FAILED_PRECONDITION,
    EngineUnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    EngineFaultError: grpc.StatusCode.INTERNAL,
}

# What may reach a caller as itself; anything else is a fault of ours.
EXPECTED = tuple(_CODES)

# They say when to come back.
_RETRIED = (
    QueueFullError,
    QueueTimeoutError,
    BudgetError,
    CallerLimitError,
    RateLimitError,
    EngineUnavailableError,
)
_PUSHBACK = "grpc-retry-pushback-ms"
_MAX_MESSAGE_BYTES = 512
_MAX_VIOLATIONS_BYTES = 2048


@dataclass(frozen=True, slots=True)
class _Status(grpc.Status):
    """What gRPC's abort_with_status reads."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def code_of(error: VdiffError) -> grpc.StatusCode:
    """`error` is one of EXPECTED."""
    return _CODES[type(error)]


def to_status(error: VdiffError, *metadata: tuple[str, str]) -> grpc.Status:
    """The status to abort a call with. metadata: to go with it."""
    code = code_of(error)
    message = _cut(str(error), _MAX_MESSAGE_BYTES)
    details = [_packed(detail) for detail in _details(error, message)]
    packed = rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=message, details=details)
    )
    if isinstance(error, EngineUnavailableError):
        # gRPC's own retries, in every language, wait as long as this says (gRFC A6).
        metadata += ((_PUSHBACK, str(round(error.retry_after_s * 1e3))),)
    return _Status(code, message, (*packed.trailing_metadata, *metadata))


def _details(error: VdiffError, message: str) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Message] = [info]
    if isinstance(error, EngineFaultError):
        info.metadata["fault_id"] = error.fault_id
    if isinstance(error, InvalidRequestError):
        details.append(_bad_request(error))
    if isinstance(error, QueueFullError | QueueTimeoutError | BudgetError):
        details.append(_quota_failure("rows", message))
    if isinstance(error, RateLimitError | CallerLimitError):
        details.append(_quota_failure(error.subject, message))
    if isinstance(error, _RETRIED):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1e3))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _MAX_MESSAGE_BYTES),
            description=_cut(violation.description, _MAX_MESSAGE_BYTES),
        )
        if bad_request.ByteSize() + entry.ByteSize() > _MAX_VIOLATIONS_BYTES:
            break
        bad_request.field_violations.append(entry)
    return bad_request


def _quota_failure(subject: str, message: str) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
    return error_details_pb2.QuotaFailure(violations=[violation])


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, max_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."
