"""The blocking client. One channel, safe to share between threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vdiff_grpc import v1
from vdiff_grpc.channels import READY_SERVICE, Address
from vdiff_grpc.client.connection import DEFAULT_ADDRESS, ConnectionFields, connection
from vdiff_grpc.client.errors import TimedOutError, UnavailableError, from_rpc_error
from vdiff_grpc.client.requests import (
    Granularity,
    InputFields,
    SpecFields,
    build_count,
    build_spec,
    build_stream_options,
)

POLL_INTERVAL_S = 0.1


class Client:
    """Calls a server, or several, and waits for the answers. Failed calls raise ClientError.

    address: host:port, several of them (a sequence, or with commas), or dns:///name:port.
    connection_fields: see connection.py. ValueError for what cannot be.
    timeout_s, here and with each call: the deadline of the whole call, its retries included.
    """

    def __init__(
        self,
        address: Address = DEFAULT_ADDRESS,
        **connection_fields: Unpack[ConnectionFields],
    ) -> None:
        self._how = how = connection(address, **connection_fields)
        self.address = how.target
        self._channel = (
            grpc.insecure_channel(how.target, how.options)
            if how.credentials is None
            else grpc.secure_channel(how.target, how.credentials, how.options)
        )
        self._generation = v1.GenerationServiceStub(self._channel)
        self._models = v1.ModelServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every call still open on it."""
        self._channel.close()

    def generate(
        self,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        **fields: Unpack[SpecFields],
    ) -> v1.GenerateResponse:
        """Generates, and answers once everything is there."""
        request = v1.GenerateRequest(spec=self._how.named(build_spec(text=text, **fields)))
        reply: v1.GenerateResponse = self._call(self._generation.Generate, request, timeout_s)
        return reply

    def stream(
        self,
        text: str | None = None,
        *,
        granularity: Granularity | None = None,
        stride: int | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[SpecFields],
    ) -> Generator[v1.StreamGenerateResponse, None, None]:
        """Generates, and yields the events meanwhile. Closing the iterator cancels the call."""
        request = v1.StreamGenerateRequest(
            spec=self._how.named(build_spec(text=text, **fields)),
            options=build_stream_options(granularity, stride),
        )
        return self._stream(request, timeout_s)

    def cancel(self, request_id: str, *, timeout_s: float | None = None) -> bool:
        """Cancels a request by its id, on whatever connection it came; False if none is open."""
        request = v1.CancelRequestRequest(request_id=request_id)
        reply: v1.CancelRequestResponse = self._call(
            self._generation.CancelRequest, request, timeout_s
        )
        return reply.cancelled

    def model_info(
        self, model: str = "", *, timeout_s: float | None = None
    ) -> v1.GetModelInfoResponse:
        """The model's capabilities and limits."""
        request = v1.GetModelInfoRequest(model=model)
        reply: v1.GetModelInfoResponse = self._call(self._models.GetModelInfo, request, timeout_s)
        return reply

    def server_info(self, *, timeout_s: float | None = None) -> v1.GetServerInfoResponse:
        """The server's state and counters."""
        request = v1.GetServerInfoRequest()
        reply: v1.GetServerInfoResponse = self._call(self._models.GetServerInfo, request, timeout_s)
        return reply

    def count_tokens(
        self,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        **fields: Unpack[InputFields],
    ) -> v1.CountTokensResponse:
        """Counts an input's tokens as `generate` would."""
        request = build_count(text=text, **fields)
        reply: v1.CountTokensResponse = self._call(self._models.CountTokens, request, timeout_s)
        return reply

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server takes requests, or raises TimedOutError.

        Also waits for a server that does not listen yet.
        """
        deadline = time.monotonic() + timeout_s
        last = f"no server at {self.address}"
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                if self._watch_health(remaining_s):
                    return
                last = "the server is not serving"
            except UnavailableError as error:
                last = error.message
            except TimedOutError:
                break
            time.sleep(max(0.0, min(POLL_INTERVAL_S, deadline - time.monotonic())))
        raise not_ready(self.address, timeout_s, last)

    def _watch_health(self, timeout_s: float) -> bool:
        """Follows the server's health: True at SERVING, False when the stream ends."""
        request = health_pb2.HealthCheckRequest(service=READY_SERVICE)
        call = self._health.Watch(request, timeout=timeout_s, metadata=self._how.metadata)
        with contextlib.closing(self._events(call)) as replies:
            return any(reply.status == health_pb2.HealthCheckResponse.SERVING for reply in replies)

    def _stream(
        self, request: v1.StreamGenerateRequest, timeout_s: float | None
    ) -> Generator[v1.StreamGenerateResponse, None, None]:
        call = self._generation.StreamGenerate(request, **self._how.call_arguments(timeout_s))
        yield from self._events(call)

    def _events(self, call: Any) -> Generator[Any, None, None]:
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return method(request, **self._how.call_arguments(timeout_s))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


def not_ready(address: str, timeout_s: float, last: str) -> TimedOutError:
    """The error of a server that does not become ready."""
    return TimedOutError(
        f"{address} is not ready after {timeout_s:g} s: {last}",
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
    )
