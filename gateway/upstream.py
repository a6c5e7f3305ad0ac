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

from .config import GatewayConfig
from .credentials import ServiceKey, upstream_credentials

_SERVICE = "vdiff.v1.GenerationService"
_CHECK_TIMEOUT_S = 2.0
_OPTIONS: tuple[tuple[str, int | str], ...] = (
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
AUTHORIZATION = "authorization"


class Upstream:
    """Made on the event loop that uses it. Raises CredentialError."""

    def __init__(self, config: GatewayConfig) -> None:
        self.target = config.server
        # 0 is "never" for us and "at once" for gRPC.
        self.timeout_s = config.request_timeout_s or None
        path = config.upstream_api_key_file
        self._key = ServiceKey(path) if path else None
        self._channel = _channel(config)
        self._channel.get_state(try_to_connect=True)
        self.generation = v1.GenerationServiceStub(self._channel)
        self.models = v1.ModelServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    @property
    def has_own_key(self) -> bool:
        return self._key is not None

    def signed(self, metadata: Metadata) -> Metadata:
        """With the gateway's own key in place of the client's, where it has one."""
        if self._key is None:
            return metadata
        others = (pair for pair in metadata if pair[0] != AUTHORIZATION)
        return (*others, (AUTHORIZATION, f"Bearer {self._key.value()}"))

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

    async def server_info(self, metadata: Metadata = ()) -> v1.GetServerInfoResponse:
        """Raises AioRpcError; within the time of a health check.

        metadata: the client's, for what a client asks; else the gateway asks for itself.
        """
        server: v1.GetServerInfoResponse = await self.models.GetServerInfo(
            v1.GetServerInfoRequest(),
            timeout=_CHECK_TIMEOUT_S,
            metadata=metadata or self.signed(()),
        )
        return server


def _channel(config: GatewayConfig) -> grpc.aio.Channel:
    credentials = upstream_credentials(config)
    if credentials is None:
        return grpc.aio.insecure_channel(config.server, options=_OPTIONS)
    options = _OPTIONS
    if config.upstream_name:
        options += (("grpc.ssl_target_name_override", config.upstream_name),)
    return grpc.aio.secure_channel(config.server, credentials, options=options)
