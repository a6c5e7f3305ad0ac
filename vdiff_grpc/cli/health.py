"""`vdiff-grpc health`: one health check, for probes that cannot speak gRPC or TLS themselves.

Exit code 0 means SERVING, anything else that it does not. Needs no key and no extra.
"""

from __future__ import annotations

import argparse
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vdiff_grpc import v1
from vdiff_grpc.cli.flags import add_connection_flags, connection_fields
from vdiff_grpc.client.connection import connection
from vdiff_grpc.errors import VdiffError

READY = v1.generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
_STATUS = health_pb2.HealthCheckResponse.ServingStatus


class NotServingError(VdiffError):
    """The server does not serve, or cannot be asked; says which."""

    reason = "NOT_SERVING"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and what is asked of it."""
    add_connection_flags(parser)
    parser.add_argument(
        "--service",
        default=READY,
        metavar="NAME",
        help=f"whose health; '' is liveness (default {READY}: readiness)",
    )
    parser.add_argument(
        "--timeout",
        dest="timeout_s",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="give up after so long (default 5)",
    )
    parser.set_defaults(api_key_file=None)


def run(args: argparse.Namespace) -> int:
    """Raises NotServingError."""
    fields = connection_fields(args)
    # One answer of one server: neither retries nor balancing, which waits for a healthy one.
    how = connection(
        args.address,
        credentials=fields.get("credentials"),
        server_name=fields.get("server_name"),
        retries=None,
        balanced=False,
    )
    with (
        grpc.insecure_channel(how.target, how.options)
        if how.credentials is None
        else grpc.secure_channel(how.target, how.credentials, how.options)
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=args.service)
        try:
            reply = stub.Check(request, timeout=args.timeout_s)
        except grpc.RpcError as error:
            what = f"{error.code().name}: {error.details()}"
            raise NotServingError(f"{args.address}: {what}") from None
    status = _STATUS.Name(reply.status)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotServingError(f"{args.address}: {status}")
    print(status)
    return 0
