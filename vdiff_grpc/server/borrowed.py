"""Handlers of services that are not ours (health, reflection, channelz), made safe.

gRPC answers what a handler or a parser raises with the exception's own text, and logs a traceback
for any peer who sends broken bytes. Behind this it is a status without that text, and one line.
"""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from vdiff_grpc.errors import EngineFaultError, FieldViolation, InvalidRequestError
from vdiff_grpc.server import status

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone
Context = aio.ServicerContext[Any, Any]


class Broken:
    """In place of a message that could not be read."""


def lenient(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Gives Broken where the deserializer raises."""
    assert deserializer is not None

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except (DecodeError, ValueError):
            return Broken()

    return read


def broken() -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("", "the bytes are not a valid request")])


def guarded(rpc: str, handler: Handler) -> Handler:
    """The same handler, whose faults are statuses."""
    if handler.request_streaming and handler.response_streaming:
        # A broken message is raised where the handler waits for the next one.
        return grpc.stream_stream_rpc_method_handler(
            _streaming(rpc, handler.stream_stream),
            handler.request_deserializer,
            handler.response_serializer,
        )
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(rpc, handler.unary_stream),
            lenient(handler.request_deserializer),
            handler.response_serializer,
        )
    return grpc.unary_unary_rpc_method_handler(
        _unary(rpc, handler.unary_unary),
        lenient(handler.request_deserializer),
        handler.response_serializer,
    )


def _unary(rpc: str, behaviour: Any) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        try:
            _refuse_broken(request)
            return await behaviour(request, context)
        except aio.AbortError:
            raise
        except Exception as error:
            await _abort(rpc, error, context)

    return handle


def _streaming(rpc: str, behaviour: Any) -> Any:
    async def handle(request: Any, context: Context) -> None:
        try:
            _refuse_broken(request)
            # Both kinds occur: generators, and coroutines that write for themselves.
            replies = behaviour(request, context)
            if inspect.isawaitable(replies):
                await replies
            else:
                await _write(replies, context)
        except aio.AbortError:
            raise
        except Exception as error:
            await _abort(rpc, error, context)

    return handle


async def _write(replies: AsyncIterator[Any], context: Context) -> None:
    async for reply in replies:
        await context.write(reply)


def _refuse_broken(request: object) -> None:
    if isinstance(request, Broken):
        raise broken()


async def _abort(rpc: str, error: Exception, context: Context) -> None:
    if isinstance(error, DecodeError):
        error = broken()
    if not isinstance(error, InvalidRequestError):
        fault = EngineFaultError(uuid.uuid4().hex[:12])
        logger.error("fault %s in %s", fault.fault_id, rpc, exc_info=error)
        error = fault
    await context.abort_with_status(status.to_status(error))
