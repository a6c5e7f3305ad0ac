"""The error tree of server and engine. Knows neither gRPC nor HTTP.

VdiffError
├── InvalidRequestError     a field is wrong or over a limit        INVALID_ARGUMENT
├── ModelNotFoundError      another model than the served one       NOT_FOUND
├── UnauthenticatedError    no key, or one that is not known        UNAUTHENTICATED
├── PermissionDeniedError   a key without the right                 PERMISSION_DENIED
├── RateLimitError          a key's requests or tokens are used up  RESOURCE_EXHAUSTED
├── QueueFullError          no place to wait                        RESOURCE_EXHAUSTED
├── QueueTimeoutError       waited too long for a place             RESOURCE_EXHAUSTED
├── BudgetError             cannot be in time, however hurried      RESOURCE_EXHAUSTED
├── CallerLimitError        the caller has too much open            RESOURCE_EXHAUSTED
├── RequestIdConflictError  the id stands for another request       ALREADY_EXISTS
├── RequestCancelledError   cancelled by its id                     CANCELLED
├── QuarantinedError        it has ended the engine before          FAILED_PRECONDITION
├── EngineUnavailableError  loading, draining, restarting           UNAVAILABLE
├── DeadlineError           the request's time is over              DEADLINE_EXCEEDED
├── EngineFaultError        our own bug, met while serving          INTERNAL
└── CheckpointError         a model cannot be loaded                (ends the server)
"""

from __future__ import annotations

from dataclasses import dataclass


class VdiffError(Exception):
    """Base of all. `reason` is stable, UPPER_SNAKE, and meant for programs."""

    reason = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in GenerationSpec and what is wrong, with value and limit."""

    field: str
    description: str


class InvalidRequestError(VdiffError):
    """The request asks for what cannot be done. Lists every violation found."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: list[FieldViolation]) -> None:
        self.violations = violations
        super().__init__("; ".join(v.description for v in violations))

    def __reduce__(self) -> tuple[type, tuple[list[FieldViolation]]]:
        return type(self), (self.violations,)


class ModelNotFoundError(VdiffError):
    """The named model is not served here."""

    reason = "MODEL_NOT_FOUND"


class QueueFullError(VdiffError):
    """Running and waiting rows are at their limits. `retry_after_s`: a guess of seconds."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(VdiffError):
    """The call has no API key, or one that is not known here."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(VdiffError):
    """The caller's key lacks the right that the call needs."""

    reason = "PERMISSION_DENIED"


class RateLimitError(VdiffError):
    """A caller's window is used up. `retry_after_s`: when it has room for what was asked.

    `subject`: whose quota it is, for google.rpc.QuotaFailure.
    """

    reason = "RATE_LIMIT"

    def __init__(self, message: str, retry_after_s: float, subject: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.subject = subject


class QueueTimeoutError(VdiffError):
    """Waited longer than `--max-queue-time-s` for its first step. `retry_after_s` as above."""

    reason = "QUEUE_TIMEOUT"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BudgetError(VdiffError):
    """A latency budget that could not be kept at the utmost haste. `retry_after_s` as above."""

    reason = "LATENCY_BUDGET"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerLimitError(VdiffError):
    """One caller, or all together, hold as much as they may.

    subject: what there is too much of, "calls" or "tokens".
    """

    reason = "CALLER_LIMIT"

    def __init__(self, message: str, subject: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_after_s = retry_after_s


class RequestIdConflictError(VdiffError):
    """The caller's request_id stands for a request of other content."""

    reason = "REQUEST_ID_CONFLICT"


class RequestCancelledError(VdiffError):
    """Cancelled by its id, from another call."""

    reason = "REQUEST_CANCELLED"


class QuarantinedError(VdiffError):
    """This very request has ended the engine's process and is kept from it for a while."""

    reason = "REQUEST_QUARANTINED"


class EngineUnavailableError(VdiffError):
    """The engine cannot take requests now."""

    reason = "ENGINE_UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(VdiffError):
    """The request's deadline or the server's time limit passed."""

    reason = "REQUEST_TIMEOUT"


class EngineFaultError(VdiffError):
    """An exception past validation. `fault_id` finds it in the server's log."""

    reason = "INTERNAL_FAULT"

    def __init__(self, fault_id: str) -> None:
        super().__init__(f"internal error {fault_id}")
        self.fault_id = fault_id

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.fault_id,)


class CheckpointError(VdiffError):
    """A checkpoint cannot be loaded; the message names the file and what was expected."""

    reason = "CHECKPOINT"
