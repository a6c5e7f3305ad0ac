"""What a call leaves in the log, and what a fault of ours leaves for the caller."""

from __future__ import annotations

import json
import logging
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio

from tests.conftest import RunningServer
from tests.server.calls import detail, generate, reason, spec
from vdiff_grpc import v1
from vdiff_grpc.errors import CheckpointError
from vdiff_grpc.server import logs
from vdiff_grpc.server.interceptors import CallInterceptor
from vdiff_grpc.server.observer import Observer


class Faulty(v1.GenerationServiceServicer):
    """Fails as no servicer should."""

    async def Generate(self, request: v1.GenerateRequest, call: object) -> None:  # noqa: N802
        raise KeyError("a secret of the server")

    async def StreamGenerate(self, request: v1.StreamGenerateRequest, call: object):  # noqa: N802
        yield v1.StreamGenerateResponse()
        raise CheckpointError("/a/secret/path")


@pytest.fixture
async def faulty():
    server = aio.server(interceptors=[CallInterceptor(Observer((), "1"))])
    v1.add_GenerationServiceServicer_to_server(Faulty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield v1.GenerationServiceStub(channel)
    await server.stop(None)


async def test_a_fault_leaves_as_an_id_that_finds_it_in_the_log(
    faulty: v1.GenerationServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aio.AioRpcError) as unary:
        await faulty.Generate(v1.GenerateRequest())
    with pytest.raises(aio.AioRpcError) as streamed:
        [reply async for reply in faulty.StreamGenerate(v1.StreamGenerateRequest())]
    for failed, words in [(unary, "a secret of the server"), (streamed, "/a/secret/path")]:
        error = failed.value
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error)
        assert reason(error) == "INTERNAL_FAULT"
        fault_id = detail(error, error_details_pb2.ErrorInfo).metadata["fault_id"]
        assert fault_id in error.details()
        [record] = [record for record in caplog.records if fault_id in record.getMessage()]
        assert words in logging.Formatter().format(record)


FORMATTERS = {"text": logs._TextFormatter(), "json": logs._JsonFormatter()}


def fields_of(records: list[logging.LogRecord], name: str) -> dict[str, object]:
    [fields] = [r.fields for r in records if getattr(r, "fields", {}).get("request_id") == name]
    return fields


def test_one_line_tells_of_a_request_and_none_of_its_prompt(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vdiff_grpc")
    good, bad = spec([31, 41, 59]), spec()
    good.request_id, bad.request_id, bad.model = "good-one", "bad-one", "gpt\nERROR forged"
    server.generation.Generate(generate(good))
    with pytest.raises(grpc.RpcError):
        server.generation.Generate(generate(bad))
    server.wait_idle()
    said = fields_of(caplog.records, "good-one")
    assert (said["rpc"], said["model"], said["code"]) == (
        "GenerationService/Generate",
        "tiny",
        "OK",
    )
    assert (said["tokens"], said["forwards"], said["reason"]) == (16, 16, "length")
    refused = fields_of(caplog.records, "bad-one")
    assert (refused["code"], refused["reason"]) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert refused["model"] == r"gpt\nERROR forged"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_in_a_record_can_forge_a_line(log_format: str) -> None:
    forged = "a\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u2028"
    try:
        raise ValueError(forged)
    except ValueError:
        trace = sys.exc_info()
    record = logging.LogRecord("vdiff_grpc.x", logging.INFO, "f", 1, "%s", (forged,), trace)
    record.fields = {"model": forged.replace(" ", "")}
    first, *more = FORMATTERS[log_format].format(record).split("\n")
    assert first.isprintable()
    assert all(line.isprintable() and line.startswith("  | ") for line in more)


def test_log_lines_are_text_or_json() -> None:
    record = logging.LogRecord("vdiff_grpc.x", logging.INFO, "f", 1, "two %s", ("words",), None)
    record.fields = {"id": "r1 code=OK", "tokens": 3}
    logger = logging.getLogger("vdiff_grpc")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        logs.configure("json", "info")
        line = json.loads(logger.handlers[0].format(record))
        assert {
            "level": "info",
            "message": "two words",
            "id": "r1 code=OK",
            "tokens": 3,
        }.items() <= line.items()
        logs.configure("text", "warning")
        assert (
            logger.handlers[0]
            .format(record)
            .endswith('INFO vdiff_grpc.x two words id="r1 code=OK" tokens=3')
        )
        assert not logger.isEnabledFor(logging.INFO)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
        logger.manager._clear_cache()


@pytest.mark.parametrize(
    "rpc",
    [
        "/vdiff.v1.GenerationService/Generate",
        "/vdiff.v1.GenerationService/StreamGenerate",
        "/vdiff.v1.ModelService/CountTokens",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_bytes_that_are_no_message_are_refused_without_the_parsers_words(
    server: RunningServer, caplog: pytest.LogCaptureFixture, rpc: str
) -> None:
    assert server.channel is not None
    for broken in (b"\x0a\xff\x01", b"\x0a\x02\xff\xfe"):
        with pytest.raises(grpc.RpcError) as refused:
            list(server.channel.unary_stream(rpc)(broken, timeout=10))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value
        assert reason(refused.value) == "INVALID_FIELD"
        assert "Decode" not in str(refused.value.details())
    server.wait_idle()
    assert not any(record.exc_info for record in caplog.records)


def test_a_fault_of_a_borrowed_service_leaves_as_an_id(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: object, context: object) -> None:
        raise KeyError("a secret of the server")

    async def call() -> aio.AioRpcError:
        other = aio.server(interceptors=[CallInterceptor(Observer((), "1"))])
        handler = grpc.unary_unary_rpc_method_handler(fail, bytes, bytes)
        other.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("x.Borrowed", {"Fail": handler}),)
        )
        port = other.add_insecure_port("127.0.0.1:0")
        await other.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(aio.AioRpcError) as failed:
                await channel.unary_unary("/x.Borrowed/Fail")(b"")
        await other.stop(None)
        return failed.value

    error = server.call(call())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error)
    assert reason(error) == "INTERNAL_FAULT"
    assert "a secret of the server" in caplog.text
