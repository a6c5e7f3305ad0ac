"""How clients reach servers: deadlines, keys, retries, and round_robin over healthy servers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.certificates import Authority
from tests.conftest import RunningServer
from vdiff_grpc import keys, v1
from vdiff_grpc.channels import READY_SERVICE, service_config, target_of
from vdiff_grpc.client import (
    AsyncClient,
    CallCancelledError,
    Client,
    InvalidArgumentError,
    ResourceExhaustedError,
    Retries,
    UnauthenticatedError,
    UnavailableError,
)
from vdiff_grpc.client.connection import connection

QUICK = Retries(first_wait_s=0.01, longest_wait_s=0.02)
CODES = {code.name.lower(): code for code in grpc.StatusCode}


class Faltering(v1.GenerationServiceServicer):
    """Ends calls with the statuses that their request id lists, then answers.

    "unavailable,ok": the first attempt fails. Streams fail before their first message, or after
    it where the id begins with "late:".
    """

    def __init__(self) -> None:
        self.attempts = 0
        self.request_ids: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.remaining_s: float | None = None

    def Generate(self, request: Any, context: Any) -> v1.GenerateResponse:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        self.remaining_s = context.time_remaining()
        self.request_ids.append(request.spec.request_id)
        self._falter(request.spec.request_id, context)
        return v1.GenerateResponse(request_id=str(self.attempts))

    def StreamGenerate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        late, _, plan = request.spec.request_id.rpartition(":")
        if late:
            yield v1.StreamGenerateResponse(started=v1.Started())
        self._falter(plan, context)
        yield v1.StreamGenerateResponse(finished=v1.Finished())

    def _falter(self, plan: str, context: Any) -> None:
        steps = plan.split(",")
        step = steps[min(self.attempts, len(steps) - 1)]
        self.attempts += 1
        if step != "ok" and step in CODES:
            context.abort(CODES[step], f"attempt {self.attempts}")


@pytest.fixture
def peer() -> Iterator[tuple[str, Faltering]]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Faltering()
    v1.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """One call by either client; a list of the reply, or of the stream's events."""

    def blocking(address: str, plan: str, stream: bool, **fields: Any) -> list[Any]:
        with Client(address, **fields) as client:
            if stream:
                return list(client.stream("a", request_id=plan))
            return [client.generate("a", request_id=plan)]

    async def awaited(address: str, plan: str, stream: bool, **fields: Any) -> list[Any]:
        async with AsyncClient(address, **fields) as client:
            if stream:
                return [event async for event in client.stream("a", request_id=plan)]
            return [await client.generate("a", request_id=plan)]

    if request.param == "blocking":
        return blocking
    return lambda *args, **fields: asyncio.run(awaited(*args, **fields))


class Unlucky(Faltering):
    """Fails every first attempt, whatever the request's id."""

    def _falter(self, plan: str, context: Any) -> None:
        super()._falter("unavailable,ok", context)


def test_a_call_without_an_id_has_one_for_all_its_attempts() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = Unlucky()
    v1.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}", retries=QUICK) as client:
        client.generate("a")
        client.generate("a")
    first, again, *others = servicer.request_ids
    assert first
    assert again == first
    assert len({first, *others}) == 2
    server.stop(None).wait()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_finds_nobody_ready_is_tried_again(
    peer: tuple[str, Faltering], ask: Callable[..., list[Any]], stream: bool
) -> None:
    address, servicer = peer
    ask(address, "unavailable,unavailable,ok", stream, retries=QUICK)
    assert servicer.attempts == 3


def test_a_stream_is_not_tried_again_after_its_first_message(
    peer: tuple[str, Faltering], ask: Callable[..., list[Any]]
) -> None:
    address, servicer = peer
    with pytest.raises(UnavailableError):
        ask(address, "late:unavailable,ok", True, retries=QUICK)
    assert servicer.attempts == 1


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ("resource_exhausted,ok", ResourceExhaustedError),
        ("invalid_argument,ok", InvalidArgumentError),
    ],
)
def test_only_unavailable_is_tried_again(
    peer: tuple[str, Faltering], ask: Callable[..., list[Any]], plan: str, error: type[Exception]
) -> None:
    address, servicer = peer
    with pytest.raises(error):
        ask(address, plan, False, retries=QUICK)
    assert servicer.attempts == 1


@pytest.mark.parametrize(("retries", "attempts"), [(None, 1), (Retries(3, 0.01, 0.02), 3)])
def test_the_number_of_attempts_is_what_was_asked_for(
    peer: tuple[str, Faltering],
    ask: Callable[..., list[Any]],
    retries: Retries | None,
    attempts: int,
) -> None:
    address, servicer = peer
    with pytest.raises(UnavailableError, match=f"attempt {attempts}"):
        ask(address, "unavailable", False, retries=retries)
    assert servicer.attempts == attempts


def test_a_call_has_the_client_s_deadline_unless_it_has_one_of_its_own(
    peer: tuple[str, Faltering],
) -> None:
    address, servicer = peer
    with Client(address) as client:
        client.generate("a")
        assert servicer.remaining_s == pytest.approx(600, abs=30)
    with Client(address, timeout_s=50) as client:
        client.generate("a")
        assert servicer.remaining_s == pytest.approx(50, abs=30)
        client.generate("a", timeout_s=200)
        assert servicer.remaining_s == pytest.approx(200, abs=30)
        client.generate("a", timeout_s=math.inf)
        assert servicer.remaining_s is None or servicer.remaining_s > 1e8


def test_the_key_and_the_metadata_go_with_every_call(
    peer: tuple[str, Faltering], ask: Callable[..., list[Any]]
) -> None:
    address, servicer = peer
    ask(address, "ok", False, api_key="k-1", metadata=[("x-tenant", "a")])
    assert servicer.metadata["authorization"] == "Bearer k-1"
    assert servicer.metadata["x-tenant"] == "a"


def test_credentials_make_the_channel(ask: Callable[..., list[Any]]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    v1.add_GenerationServiceServicer_to_server(Faltering(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    server.start()
    ask(f"127.0.0.1:{port}", "ok", False, credentials=grpc.local_channel_credentials())
    server.stop(None).wait()


def test_a_call_may_wait_for_a_server_that_is_not_there_yet() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    v1.add_GenerationServiceServicer_to_server(Faltering(), server)
    port = server.add_insecure_port("127.0.0.1:0")  # bound, and nobody answers
    with (
        Client(f"127.0.0.1:{port}", wait_for_ready=True, timeout_s=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.generate, "a")
        server.start()
        assert waiting.result(30).request_id == "1"
    server.stop(None).wait()


def test_addresses_become_one_target() -> None:
    assert target_of("localhost:1") == "localhost:1"
    assert target_of(["127.0.0.1:1"]) == "127.0.0.1:1"
    assert target_of(["127.0.0.1:1", "127.0.0.1:2"]) == "ipv4:127.0.0.1:1,127.0.0.1:2"
    assert target_of("127.0.0.1:1,127.0.0.1:2") == "ipv4:127.0.0.1:1,127.0.0.1:2"
    assert target_of("ipv4:127.0.0.1:1,127.0.0.1:2") == "ipv4:127.0.0.1:1,127.0.0.1:2"
    assert target_of(["[::1]:1", "[::1]:2"]) == "ipv6:[::1]:1,[::1]:2"
    assert target_of("dns:///servers:1") == "dns:///servers:1"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"address": ["localhost:1", "127.0.0.1:2"]}, "dns:///"),
        ({"address": []}, "at least one"),
        ({"address": "a:1", "api_key": "a b"}, "api_key"),
        ({"address": "a:1", "api_key": "a\n"}, "api_key"),
        ({"address": "a:1", "timeout_s": 0}, "timeout_s"),
        ({"address": "a:1", "timeout_s": math.nan}, "timeout_s"),
        ({"address": "a:1", "keepalive_s": -1}, "keepalive_s"),
    ],
)
def test_what_cannot_be_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        connection(**arguments)
    assert "a b" not in str(caught.value), "a key is not told"


def test_tls_to_several_hosts_needs_the_name_in_their_certificate() -> None:
    secure = {"credentials": grpc.local_channel_credentials()}
    with pytest.raises(ValueError, match="server_name"):
        connection("10.0.0.1:1,10.0.0.2:1", **secure)
    for address, given, name in [
        ("10.0.0.1:1,10.0.0.2:1", "servers", "servers"),
        ("10.0.0.1:1,10.0.0.1:2", None, "10.0.0.1"),
        ("[::1]:1,[::1]:2", None, "::1"),
        ("10.0.0.1:1", "servers", "servers"),
    ]:
        options = dict(connection(address, server_name=given, **secure).options)
        assert options["grpc.ssl_target_name_override"] == name
    assert "grpc.ssl_target_name_override" not in dict(connection("a:1", **secure).options)


def test_retries_that_gRPC_does_not_make_are_named() -> None:  # noqa: N802
    with pytest.raises(ValueError, match=r"attempts \(6\)"):
        Retries(attempts=6)
    with pytest.raises(ValueError, match="first_wait_s"):
        Retries(first_wait_s=0)


def test_only_several_addresses_are_balanced_by_health() -> None:
    assert "healthCheckConfig" not in service_config(retries=None, balanced=False)
    config = service_config(retries=None, balanced=True)
    assert config["healthCheckConfig"] == {"serviceName": READY_SERVICE}
    for address, balanced in {
        "a:1": False,
        "dns:///a:1": True,
        "1.1.1.1:1,1.1.1.2:1": True,
    }.items():
        assert ("round_robin" in dict(connection(address).options)["grpc.service_config"]) is (
            balanced
        )


def test_calls_go_to_every_healthy_server_and_to_none_that_leaves(
    serve: Callable[..., RunningServer],
) -> None:
    one, other = serve(drain_delay_s=30.0), serve()
    with Client([one.address, other.address], wait_for_ready=True, timeout_s=60) as client:
        client.wait_until_ready(30)
        num_seen = [0, 0]
        while not all(num_seen):  # until both connections stand
            client.generate(token_ids=[5, 17], max_new_tokens=1)
            num_seen = [one.statistics().requests, other.statistics().requests]
        for _ in range(4):
            client.generate(token_ids=[5, 17], max_new_tokens=1)
        before = [one.statistics().requests, other.statistics().requests]
        assert [now - was for now, was in zip(before, num_seen, strict=True)] == [2, 2]
        draining = asyncio.run_coroutine_threadsafe(one.server.drain(), one._loop)
        while _asked(client, one):
            pass
        settled = one.statistics().requests
        for _ in range(4):
            client.generate(token_ids=[5, 17], max_new_tokens=1)
        assert one.statistics().requests == settled
        draining.cancel()


def _asked(client: Client, server: RunningServer) -> bool:
    """Whether one of two calls in turn still goes to this server."""
    before = server.statistics().requests
    for _ in range(2):
        client.generate(token_ids=[5, 17], max_new_tokens=1)
    return server.statistics().requests > before


async def test_the_asyncio_client_balances_too_and_over_tls_with_a_key(
    serve: Callable[..., RunningServer], tmp_path: Path
) -> None:
    authority = Authority()
    cert, private = authority.issue().write(tmp_path, "server")
    api_key = keys.new_key()
    entry = keys.KeyEntry("caller", (keys.digest(api_key),), ("generate",))
    keys.save(tmp_path / "keys.json", (entry,))
    options = {"tls_cert": cert, "tls_key": private, "api_keys": str(tmp_path / "keys.json")}
    servers = [serve(**options), serve(**options)]
    addresses = ",".join(server.address for server in servers)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    async with AsyncClient(
        addresses, credentials=credentials, api_key=api_key, wait_for_ready=True, timeout_s=60
    ) as client:
        while not all(server.server._engine.statistics.requests for server in servers):
            await client.generate(token_ids=[5, 17], max_new_tokens=1)
    async with AsyncClient(servers[0].address, credentials=credentials) as stranger:
        with pytest.raises(UnauthenticatedError):
            await stranger.generate(token_ids=[5, 17], max_new_tokens=1)


async def test_a_request_is_cancelled_by_its_id_from_another_client(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(max_running_rows=1)
    async with AsyncClient(server.address) as caller, AsyncClient(server.address) as other:
        events = caller.stream(
            token_ids=[5, 17], max_new_tokens=120, n=8, ignore_eos=True, request_id="mine"
        )
        async with contextlib.aclosing(events):
            assert (await anext(events)).HasField("started")
            assert await other.cancel("mine")
            with pytest.raises(CallCancelledError) as ended:
                async for _ in events:
                    pass
        assert ended.value.reason == "REQUEST_CANCELLED"
        assert not await other.cancel("mine")


def test_a_partial_answer_comes_in_place_of_a_timeout(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(max_running_rows=1)
    asked: dict[str, Any] = {"token_ids": [5, 17], "max_new_tokens": 120, "ignore_eos": True}
    with Client(server.address) as client:
        reply = client.generate(**asked, n=8, timeout_s=0.6, partial_on_deadline=True)
    ends = [output.end.finish_reason for output in reply.outputs]
    assert v1.FINISH_REASON_PARTIAL in ends
