"""Every error of the tree has its code, its details, and a size that fits in trailers."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from vdiff_grpc import errors
from vdiff_grpc.errors import FieldViolation, InvalidRequestError
from vdiff_grpc.server import status


def parsed(error: errors.VdiffError) -> status_pb2.Status:
    metadata = dict(status.to_status(error).trailing_metadata)
    return status_pb2.Status.FromString(metadata["grpc-status-details-bin"])


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (errors.ModelNotFoundError("m"), "NOT_FOUND", ["ErrorInfo"]),
        (InvalidRequestError([]), "INVALID_ARGUMENT", ["ErrorInfo", "BadRequest"]),
        (
            errors.QueueFullError("m"),
            "RESOURCE_EXHAUSTED",
            ["ErrorInfo", "QuotaFailure", "RetryInfo"],
        ),
        (
            errors.QueueTimeoutError("m"),
            "RESOURCE_EXHAUSTED",
            ["ErrorInfo", "QuotaFailure", "RetryInfo"],
        ),
        (
            errors.CallerLimitError("m", "calls"),
            "RESOURCE_EXHAUSTED",
            ["ErrorInfo", "QuotaFailure", "RetryInfo"],
        ),
        (errors.RequestIdConflictError("m"), "ALREADY_EXISTS", ["ErrorInfo"]),
        (errors.RequestCancelledError("m"), "CANCELLED", ["ErrorInfo"]),
        (errors.QuarantinedError("m"), "FAILED_PRECONDITION", ["ErrorInfo"]),
        (errors.EngineUnavailableError("m"), "UNAVAILABLE", ["ErrorInfo", "RetryInfo"]),
        (errors.DeadlineError("m"), "DEADLINE_EXCEEDED", ["ErrorInfo"]),
        (errors.EngineFaultError("f1"), "INTERNAL", ["ErrorInfo"]),
    ],
)
def test_each_error_has_its_code_and_details(
    error: errors.VdiffError, code: str, details: list[str]
) -> None:
    assert status.code_of(error) is grpc.StatusCode[code]
    found = parsed(error)
    assert [packed.type_url.rpartition(".")[2] for packed in found.details] == details
    info = error_details_pb2.ErrorInfo()
    found.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("vdiff", error.reason)


def test_retry_info_carries_the_guess() -> None:
    retry = error_details_pb2.RetryInfo()
    parsed(errors.EngineUnavailableError("m", 2.5)).details[-1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize("character", ["x", "\N{EURO SIGN}", "\N{GRINNING FACE}"])
def test_a_status_fits_in_trailers_whatever_it_quotes(character: str) -> None:
    error = InvalidRequestError([FieldViolation(f"f{i}", character * 5000) for i in range(5000)])
    made = status.to_status(error)
    # gRPC percent-encodes the message and base64-encodes the details
    assert 3 * len(made.details.encode()) + 4 / 3 * len(made.trailing_metadata[0][1]) < 7000
