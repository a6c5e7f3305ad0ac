"""The gateway's one channel to the gRPC server, and whether that server is serving.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vdiff_grpc import v1

_SERVICE = "vdiff.v1.GenerationService"
_CHECK_TIMEOUT_S = 2.0
_OPTIONS = (
    # Finds a server that vanished without a word. Our server allows a ping every 10 s; gRPC's own
    # default would end a silent call after 300 s (measured).
    ("grpc.keepalive_time_ms", 60_000),
    # Also the time after which sent and unacknowledged data ends the connection.
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that comes back is found within seconds, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # A reply may be larger than a request: several answers, each with its columns.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)

Metadata = tuple[tuple[str, str], ...]


class Upstream:
    """Made on the event loop that uses it."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self.target = target
        # 0 is "never" for us and "at once" for gRPC.
        self.timeout_s = timeout_s or None
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._channel.get_state(try_to_connect=True)
        self.generation = v1.GenerationServiceStub(self._channel)
        self.models = v1.ModelServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def info(
        self, model: str, metadata: Metadata
    ) -> tuple[v1.GetModelInfoResponse, v1.GetServerInfoResponse]:
        """Raises AioRpcError."""
        info: v1.GetModelInfoResponse
        server: v1.GetServerInfoResponse
        info, server = await asyncio.gather(
            self.models.GetModelInfo(
                v1.GetModelInfoRequest(model=model), timeout=self.timeout_s, metadata=metadata
            ),
            self.models.GetServerInfo(
                v1.GetServerInfoRequest(), timeout=self.timeout_s, metadata=metadata
            ),
        )
        return info, server

    async def why_not_serving(self) -> str | None:
        """None when the server takes requests, else the reason in words."""
        try:
            reply = await self._health.Check(
                health_pb2.HealthCheckRequest(service=_SERVICE), timeout=_CHECK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return "the model server cannot be reached"
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"the model server did not answer within {_CHECK_TIMEOUT_S:g} s"
            return f"the model server answered the health check with {error.code().name}"
        if reply.status == health_pb2.HealthCheckResponse.SERVING:
            return None
        return f"the model server is not serving: {await self._state()}"

    async def _state(self) -> str:
        try:
            server = await self.server_info()
        except grpc.aio.AioRpcError as error:
            return f"its state is unknown ({error.code().name})"
        name = v1.EngineState.Name(server.state).removeprefix("ENGINE_STATE_")
        words = name.lower().replace("_", " ")
        return f"{words}: {server.state_detail}" if server.state_detail else words

    async def server_info(self) -> v1.GetServerInfoResponse:
        """Raises AioRpcError; within the time of a health check."""
        server: v1.GetServerInfoResponse = await self.models.GetServerInfo(
            v1.GetServerInfoRequest(), timeout=_CHECK_TIMEOUT_S
        )
        return server
