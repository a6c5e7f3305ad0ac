"""The client: typed calls over the stubs, for scripts, the command line and tests. Knows no torch.

from vdiff_grpc.client import Client

with Client("127.0.0.1:50051") as client:
    reply = client.generate("Once upon a time", max_new_tokens=64)
    print(reply.outputs[0].text)
"""

from vdiff_grpc.channels import Retries
from vdiff_grpc.client.aio import AsyncClient
from vdiff_grpc.client.canvas import Canvas, OutputCanvas
from vdiff_grpc.client.connection import ConnectionFields
from vdiff_grpc.client.constraints import Schema, choice, json_schema, regex
from vdiff_grpc.client.editing import characters, finished_ids, reopen
from vdiff_grpc.client.errors import (
    AlreadyExistsError,
    CallCancelledError,
    ClientError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    QuotaViolation,
    ResourceExhaustedError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
)
from vdiff_grpc.client.requests import InputFields, SpecFields, build_spec, hole
from vdiff_grpc.client.strategies import (
    STRATEGIES,
    Strategy,
    adaptive_confidence,
    adaptive_parallel,
    confidence_threshold,
    dream_schedule,
    dynamic_threshold,
    editing,
    entropy_bound,
    factor,
    fixed_schedule,
    freedave,
    klass,
    left_to_right,
    local_leap,
    remdm,
    strategy,
    uniform_noise,
    wino,
)
from vdiff_grpc.client.sync import Client
from vdiff_grpc.client.templates import template
from vdiff_grpc.client.tools import calls, tool
from vdiff_grpc.errors import FieldViolation

__all__ = [
    "STRATEGIES",
    "AlreadyExistsError",
    "AsyncClient",
    "CallCancelledError",
    "Canvas",
    "Client",
    "ClientError",
    "ConnectionFields",
    "FailedPreconditionError",
    "FieldViolation",
    "InputFields",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutputCanvas",
    "PermissionDeniedError",
    "QuotaViolation",
    "ResourceExhaustedError",
    "Retries",
    "Schema",
    "SpecFields",
    "Strategy",
    "TimedOutError",
    "UnauthenticatedError",
    "UnavailableError",
    "adaptive_confidence",
    "adaptive_parallel",
    "build_spec",
    "calls",
    "characters",
    "choice",
    "confidence_threshold",
    "dream_schedule",
    "dynamic_threshold",
    "editing",
    "entropy_bound",
    "factor",
    "finished_ids",
    "fixed_schedule",
    "freedave",
    "hole",
    "json_schema",
    "klass",
    "left_to_right",
    "local_leap",
    "regex",
    "remdm",
    "reopen",
    "strategy",
    "template",
    "tool",
    "uniform_noise",
    "wino",
]
