"""Mutated requests and raw bytes: nothing crashes, nothing is INTERNAL, nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio

from tests.chaos.processes import ServerProcess
from tests.conftest import RunningServer
from tests.server.calls import detail, reason
from tests.service.mutants import broken_bytes, mutant
from vdiff_grpc import v1
from vdiff_grpc.client import build_spec, hole, strategy

Serve = Callable[..., RunningServer]

SERVICE = "/vdiff.v1.GenerationService"
NUM_OPEN = 32
GROUP = 100  # mutants for each question of the bystander
# Short canvases: what is proved here is not proved better by long answers.
LIMITS: dict[str, Any] = {
    "model": "demo",
    "served_model_name": ("demo",),
    "max_canvas_tokens": 32,
    "default_max_new_tokens": 4,
    "default_block_length": 4,
    "max_n": 2,
    "max_waiting_rows": 1024,
    "max_request_time_s": 60.0,
}
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,  # an id from the corpus with changed content
}
PROMPT = "Once upon"
SIZES = [200, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
RAW_SIZES = [40, pytest.param(2_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]


@pytest.fixture
def complaints() -> Iterator[list[logging.LogRecord]]:
    """What the server logs as an error or with an exception; it lives in this process."""
    found: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info or record.levelno >= logging.ERROR:
                found.append(record)

    collector = Collector()
    logging.getLogger().addHandler(collector)
    yield found
    logging.getLogger().removeHandler(collector)


def corpus(info: v1.GetModelInfoResponse) -> list[v1.StreamGenerateRequest]:
    """Valid requests of every kind of input and every strategy of the model."""
    short: dict[str, Any] = {"max_new_tokens": 4, "seed": 1}
    specs = [
        build_spec(text=PROMPT, **short),
        build_spec(text=PROMPT, suffix=" end.", request_id="named", **short),
        build_spec(token_ids=[5, 17, 42], top_p=0.9, top_k=20, temperature=0.7, **short),
        build_spec(messages=[{"role": "user", "content": "Hi"}], top_logprobs=2, **short),
        build_spec(infill=["The cat", hole(4), " the house", hole(2)], seed=2),
        build_spec(text=PROMPT, stop=["."], stop_token_ids=[7], ignore_eos=True, n=2, **short),
        build_spec(text=PROMPT, cfg_scale=1.0, steps=4, block_length=2, **short),
    ]
    specs += [build_spec(text=PROMPT, strategy=strategy(name), **short) for name in info.strategies]
    options = [v1.StreamOptions(), v1.StreamOptions(granularity=v1.GRANULARITY_STEPS, stride=2)]
    return [
        v1.StreamGenerateRequest(spec=spec, options=option) for spec in specs for option in options
    ]


class Fuzz:
    """Sends mutants over one channel, some at a time, and counts what comes back."""

    def __init__(self, channel: aio.Channel, random: Random) -> None:
        self.codes: Counter[tuple[str, grpc.StatusCode]] = Counter()
        self.wrong: list[str] = []
        self._random = random
        self._open = asyncio.Semaphore(NUM_OPEN)
        # bytes go out as they are
        self._unary = channel.unary_unary(
            f"{SERVICE}/Generate", response_deserializer=v1.GenerateResponse.FromString
        )
        self._stream = channel.unary_stream(
            f"{SERVICE}/StreamGenerate",
            response_deserializer=v1.StreamGenerateResponse.FromString,
        )

    async def send(self, seed: v1.StreamGenerateRequest) -> None:
        kind = self._random.choice(("fields", "fields", "fields", "bytes"))
        streamed = self._random.random() < 0.3
        whole = mutant(seed, self._random)
        message = whole if streamed else v1.GenerateRequest(spec=whole.spec)
        data = message.SerializeToString()
        if kind == "bytes":
            data = broken_bytes(data, self._random)
        async with self._open:
            code = await self._outcome(data, streamed)
        self.codes[kind, code] += 1

    async def _outcome(self, data: bytes, streamed: bool) -> grpc.StatusCode:
        try:
            if streamed:
                events = [event async for event in self._stream(data, timeout=100)]
                if not events or not events[-1].HasField("finished"):
                    self._blame("ended without finished", data)
            elif not (await self._unary(data, timeout=100)).outputs:
                self._blame("no output", data)
        except grpc.RpcError as error:
            code = error.code()
            if code not in ALLOWED:
                self._blame(f"{code.name}: {error.details()}", data)
            elif not reason(error):
                self._blame("no reason", data)
            elif code is grpc.StatusCode.INVALID_ARGUMENT and not _fields(error):
                self._blame("no field", data)
            return code
        return grpc.StatusCode.OK

    def _blame(self, what: str, data: bytes) -> None:
        self.wrong.append(f"{what}: {data[:200]!r}")

    def accepted_share(self) -> float:
        accepted = sum(n for (_, code), n in self.codes.items() if code is grpc.StatusCode.OK)
        return accepted / self.codes.total()


def _fields(error: grpc.RpcError) -> bool:
    return len(detail(error, error_details_pb2.BadRequest).field_violations) > 0


@pytest.mark.parametrize("size", SIZES)
async def test_mutated_requests_are_answered_or_refused_and_a_bystander_notices_nothing(
    serve: Serve, complaints: list[logging.LogRecord], size: int
) -> None:
    server = serve(**LIMITS)
    random = Random(20_251)
    async with aio.insecure_channel(server.address) as channel:
        stub = v1.GenerationServiceStub(channel)
        seeds = corpus(await v1.ModelServiceStub(channel).GetModelInfo(v1.GetModelInfoRequest()))
        for seed in seeds:  # the corpus itself is good
            await stub.Generate(v1.GenerateRequest(spec=seed.spec))
        bystander = build_spec(text="A dog", max_new_tokens=8, seed=3, temperature=0.8, n=2)
        expected = (await stub.Generate(v1.GenerateRequest(spec=bystander))).outputs
        fuzz = Fuzz(channel, random)
        since = time.monotonic()
        for first in range(0, size, GROUP):
            last = min(first + GROUP, size)
            calls = [fuzz.send(random.choice(seeds)) for _ in range(first, last)]
            answer, *_ = await asyncio.gather(
                stub.Generate(v1.GenerateRequest(spec=bystander)), *calls
            )
            assert [output.text for output in answer.outputs] == [o.text for o in expected]
            assert [output.tokens.ids for output in answer.outputs] == [
                output.tokens.ids for output in expected
            ]
        statistics = (
            await v1.ModelServiceStub(channel).GetServerInfo(v1.GetServerInfoRequest())
        ).statistics
    print(_table(fuzz), f"\n{time.monotonic() - since:.0f} s")
    assert not fuzz.wrong, fuzz.wrong[:10]
    assert not complaints, [record.getMessage() for record in complaints[:10]]
    assert fuzz.accepted_share() >= 0.2, "the mutator is too wild to prove anything"
    assert (statistics.running_rows, statistics.waiting_rows) == (0, 0)
    assert statistics.requests_failed == 0


def _table(fuzz: Fuzz) -> str:
    counted = sorted(fuzz.codes.items(), key=lambda item: (item[0][0], -item[1]))
    return "\n".join(f"{kind:7} {code.name:18} {count}" for (kind, code), count in counted)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def raw(random: Random) -> bytes:
    """What is no gRPC: noise, other protocols, HTTP/2 that goes wrong at some point."""
    noise = random.randbytes(random.choice((1, 9, 100, 5000)))
    match random.randrange(6):
        case 0:
            return noise
        case 1:
            return b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + noise
        case 2:
            return b"\x16\x03\x01\x02\x00\x01" + noise  # TLS to a plain port
        case 3:
            return broken_bytes(PREFACE + SETTINGS, random)
        case 4:
            return PREFACE + SETTINGS + noise
        case _:
            frames = b"".join(_frame(random) for _ in range(random.randint(1, 20)))
            return PREFACE + SETTINGS + frames


def _frame(random: Random) -> bytes:
    """An HTTP/2 frame with a true length, of any type and content."""
    payload = random.randbytes(random.choice((0, 4, 5, 8, 64, 1024)))
    head = len(payload).to_bytes(3, "big") + bytes((random.randrange(12), random.randrange(256)))
    return head + random.choice((0, 1, 3, 2**31 - 1)).to_bytes(4, "big") + payload


@pytest.mark.parametrize("size", RAW_SIZES)
async def test_raw_bytes_on_the_port_disturb_nobody(
    serve: Serve, complaints: list[logging.LogRecord], size: int
) -> None:
    server = serve(**LIMITS)
    host, _, port = server.address.rpartition(":")
    random = Random(20_252)
    bystander = v1.GenerateRequest(spec=build_spec(text="A dog", max_new_tokens=8, seed=3))
    async with aio.insecure_channel(server.address) as channel:
        stub = v1.GenerationServiceStub(channel)
        expected = (await stub.Generate(bystander)).outputs
        for first in range(0, size, 20):
            answer, *_ = await asyncio.gather(
                stub.Generate(bystander),
                *(_throw(host, int(port), raw(random)) for _ in range(first, first + 20)),
            )
            assert answer.outputs[0].tokens.ids == expected[0].tokens.ids
    assert not complaints, [record.getMessage() for record in complaints[:10]]


async def test_a_peer_cannot_write_lines_into_the_log(tmp_path: Path) -> None:
    server = await asyncio.to_thread(ServerProcess, tmp_path)
    try:
        await asyncio.to_thread(server.wait_ready)
        text = b"\nERROR forged by a peer\n"
        frames = [
            # GOAWAY with an error code
            (8 + len(text)).to_bytes(3, "big") + b"\7" + bytes(5) + bytes(7) + b"\2" + text,
            # HEADERS
            len(text).to_bytes(3, "big") + b"\1\4\0\0\0\1" + text,
        ]
        for frame in frames:
            await _throw("127.0.0.1", server.port, PREFACE + SETTINGS + frame)
        assert await asyncio.to_thread(server.leave) == 0
    finally:
        server.kill()
    assert "forged" not in server.log.read_text(errors="replace")


async def _throw(host: str, port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
