"""The client: typed calls over the stubs, for scripts, the command line and tests. Knows no torch.

from vdiff_grpc.client import Client

with Client("127.0.0.1:50051") as client:
    reply = client.generate("Once upon a time", max_new_tokens=64)
    print(reply.outputs[0].text)
"""

from vdiff_grpc.client.aio import AsyncClient
from vdiff_grpc.client.canvas import Canvas, OutputCanvas
from vdiff_grpc.client.errors import (
    CallCancelledError,
    ClientError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
)
from vdiff_grpc.client.requests import (
    InputFields,
    SpecFields,
    build_spec,
    confidence_threshold,
    fixed_schedule,
    hole,
)
from vdiff_grpc.client.sync import Client
from vdiff_grpc.errors import FieldViolation

__all__ = [
    "AsyncClient",
    "CallCancelledError",
    "Canvas",
    "Client",
    "ClientError",
    "FieldViolation",
    "InputFields",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutputCanvas",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "SpecFields",
    "TimedOutError",
    "UnauthenticatedError",
    "UnavailableError",
    "build_spec",
    "confidence_threshold",
    "fixed_schedule",
    "hole",
]
