"""Health, reflection and channelz, from grpcio's own packages. Knows nothing of the engine.

'' is liveness: the event loop answers. The names of our services are readiness.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc import aio
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from vdiff_grpc import v1

SERVICES = tuple(
    service.full_name for service in v1.generation_pb2.DESCRIPTOR.services_by_name.values()
)

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


_STATUS = health_pb2.HealthCheckResponse


class Health:
    """Answers health checks of all services; liveness is SERVING while the server lives."""

    def __init__(self, server: aio.Server, services: tuple[str, ...]) -> None:
        self._services = services
        self._servicer = _Servicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_ready(self, ready: bool) -> None:
        for service in self._services:
            status = _STATUS.SERVING if ready else _STATUS.NOT_SERVING
            self._servicer.listed[service] = _STATUS(status=status)
            await self._servicer.set(service, status)


class _Servicer(health.HealthServicer):
    """grpcio's, and List, which its contract has and its servicer has not."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = {"": _STATUS(status=_STATUS.SERVING)}

    async def List(self, request: object, context: object) -> Any:  # noqa: N802
        return health_pb2.HealthListResponse(statuses=self.listed)  # type: ignore[attr-defined]


def add_channelz(server: aio.Server) -> None:
    """Serves gRPC's own statistics of connections and calls."""
    channelz.add_channelz_servicer(server)


def add_reflection(server: aio.Server, services: tuple[str, ...]) -> None:
    """Serves reflection v1alpha, which grpcio ships, and v1, whose messages are the same."""
    servicer = reflection.aio.ReflectionServicer((*services, HEALTH, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))
