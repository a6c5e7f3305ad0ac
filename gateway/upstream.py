"""The gateway's channel to the gRPC servers, and whether one of them is serving.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vdiff_grpc import v1
from vdiff_grpc.channels import (
    READY_SERVICE,
    common_host,
    hosts_of,
    is_balanced,
    service_config,
    target_of,
)

from .config import GatewayConfig
from .credentials import CredentialError, ServiceKey, upstream_credentials
from .retries import Retries

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
    # A name's TXT record must not change what the gateway was told.
    ("grpc.service_config_disable_resolution", 1),
)

Metadata = tuple[tuple[str, str], ...]
AUTHORIZATION = "authorization"
_Stub = TypeVar("_Stub")


class Wrap(Protocol):
    """Puts something around a service's stub that is called in the same way."""

    def __call__(self, stub: _Stub, service: str, /) -> _Stub: ...


class Upstream:
    """Made on the event loop that uses it. Raises CredentialError."""

    def __init__(
        self,
        config: GatewayConfig,
        on_retry: Callable[[], None] = lambda: None,
        wrap: Wrap = lambda stub, _: stub,
    ) -> None:
        # 0 is "never" for us and "at once" for gRPC.
        self.timeout_s = config.request_timeout_s or None
        self.retries = Retries(config.retry_attempts, self.timeout_s, on_retry)
        path = config.upstream_api_key_file
        self._key = ServiceKey(path) if path else None
        target = target_of(config.server)
        # Of several servers, those get calls whose health says SERVING. Any of them can be asked
        # why it does not serve.
        self._channel = _channel(config, target, is_balanced(target))
        self._any = _channel(config, target, False) if is_balanced(target) else self._channel
        self._channel.get_state(try_to_connect=True)
        generation = v1.GenerationServiceStub(self._channel)
        models = v1.ModelServiceStub(self._channel)
        self.generation = wrap(generation, "GenerationService")
        self.models = wrap(models, "ModelService")
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._any_health: Any = health_pb2_grpc.HealthStub(self._any)

    async def close(self) -> None:
        await self._channel.close()
        await self._any.close()

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

        async def ask(timeout_s: float | None) -> tuple[Any, Any]:
            return await asyncio.gather(
                self.models.GetModelInfo(
                    v1.GetModelInfoRequest(model=model), timeout=timeout_s, metadata=metadata
                ),
                self.models.GetServerInfo(
                    v1.GetServerInfoRequest(), timeout=timeout_s, metadata=metadata
                ),
            )

        return await self.retries.call(ask)

    async def why_not_serving(self) -> str | None:
        """None when a server takes requests, else the reason in words."""
        request = health_pb2.HealthCheckRequest(service=READY_SERVICE)
        try:
            try:
                reply = await self._health.Check(request, timeout=_CHECK_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                if self._any is self._channel:
                    raise
                reply = await self._any_health.Check(request, timeout=_CHECK_TIMEOUT_S)
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
            server = await self._server_info(self._any, self.signed(()))
        except grpc.aio.AioRpcError as error:
            return f"its state is unknown ({error.code().name})"
        name = v1.EngineState.Name(server.state).removeprefix("ENGINE_STATE_")
        words = name.lower().replace("_", " ")
        return f"{words}: {server.state_detail}" if server.state_detail else words

    async def server_info(self, metadata: Metadata) -> v1.GetServerInfoResponse:
        """Raises AioRpcError; within the time of a health check. metadata: the client's."""
        return await self._server_info(self._channel, metadata)

    async def _server_info(
        self, channel: grpc.aio.Channel, metadata: Metadata
    ) -> v1.GetServerInfoResponse:
        server: v1.GetServerInfoResponse = await v1.ModelServiceStub(channel).GetServerInfo(
            v1.GetServerInfoRequest(), timeout=_CHECK_TIMEOUT_S, metadata=metadata
        )
        return server


def _channel(config: GatewayConfig, target: str, balanced: bool) -> grpc.aio.Channel:
    """Raises CredentialError."""
    credentials = upstream_credentials(config)
    options = _OPTIONS
    if balanced:
        options += (
            ("grpc.service_config", json.dumps(service_config(retries=None, balanced=True))),
        )
    name = config.upstream_name
    if not name and "," in target:
        name = common_host(target) or ""
        if not name and credentials is not None:
            hosts = ", ".join(sorted(hosts_of(target)))
            raise CredentialError(f"TLS to several hosts ({hosts}) needs upstream_name")
        if name:
            options += (("grpc.default_authority", name),)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    if name:
        options += (("grpc.ssl_target_name_override", name),)
    return grpc.aio.secure_channel(target, credentials, options=options)
