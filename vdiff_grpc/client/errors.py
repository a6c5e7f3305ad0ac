"""What a call can raise: gRPC's status and its details as exceptions.

ClientError                    any other status
├── InvalidArgumentError       INVALID_ARGUMENT; see `violations`
├── NotFoundError              NOT_FOUND
├── ResourceExhaustedError     RESOURCE_EXHAUSTED; see `quota` and `retry_after_s`
├── UnavailableError           UNAVAILABLE; `reason` is empty when no server answered
├── TimedOutError              DEADLINE_EXCEEDED (a TimeoutError too)
├── CallCancelledError         CANCELLED
├── AlreadyExistsError         ALREADY_EXISTS: the request_id stands for another request
├── FailedPreconditionError    FAILED_PRECONDITION: see `reason`
├── UnauthenticatedError       UNAUTHENTICATED
├── PermissionDeniedError      PERMISSION_DENIED
└── InternalError              INTERNAL
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vdiff_grpc.errors import FieldViolation

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One limit that is reached: whose or what it is, and the limit in words."""

    subject: str
    description: str


class ClientError(Exception):
    """A call that failed.

    code: gRPC's status code.
    message: the status's message.
    reason: ErrorInfo.reason, stable and UPPER_SNAKE; "" when the peer sent none.
    violations: the wrong fields, with INVALID_ARGUMENT.
    quota: the limits that are reached, with RESOURCE_EXHAUSTED.
    retry_after_s: when to come back, where the server says so.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        violations: tuple[FieldViolation, ...] = (),
        quota: tuple[QuotaViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = violations
        self.quota = quota
        self.retry_after_s = retry_after_s


class InvalidArgumentError(ClientError):
    """A field is wrong or over a limit."""


class NotFoundError(ClientError):
    """The model is not served there."""


class ResourceExhaustedError(ClientError):
    """The waiting queue is full, or a limit of the caller is reached."""


class UnavailableError(ClientError):
    """No server answered, or it is loading, draining or restarting its engine."""


class TimedOutError(ClientError, TimeoutError):
    """The deadline or the server's time limit passed."""


class CallCancelledError(ClientError):
    """The call was cancelled, as when its client was closed."""


class AlreadyExistsError(ClientError):
    """The request_id stands for another request."""


class FailedPreconditionError(ClientError):
    """The server does not take this request as things stand; `reason` says why."""


class UnauthenticatedError(ClientError):
    """The credentials are missing or wrong."""


class PermissionDeniedError(ClientError):
    """The credentials do not allow this."""


class InternalError(ClientError):
    """A fault of the server; the message has the id that finds it in the server's log."""


_TYPES: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOutError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def from_rpc_error(error: grpc.RpcError) -> ClientError:
    """The exception for a failed call, of the sync or the asyncio API."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason = ""
    violations: list[FieldViolation] = []
    quota: list[QuotaViolation] = []
    retry_after_s: float | None = None
    for detail in _details(error.trailing_metadata() or ()):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            failure = error_details_pb2.QuotaFailure()
            detail.Unpack(failure)
            quota += [QuotaViolation(v.subject, v.description) for v in failure.violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return _TYPES.get(code, ClientError)(
        message,
        code=code,
        reason=reason,
        violations=tuple(violations),
        quota=tuple(quota),
        retry_after_s=retry_after_s,
    )


def _details(trailers: Iterable[Any]) -> Iterable[Any]:
    # Details are a courtesy of the peer: what cannot be parsed must not hide the status.
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                break
    return ()
