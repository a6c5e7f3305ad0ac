"""API keys over real gRPC: who gets in, what they may do, and what the model has to do with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conftest import RunningServer, running, tiny_config
from tests.server.calls import detail, generate, ids, long_spec, reason, spec, stream, violations
from tests.server.test_process import Process
from vdiff_grpc import keys, v1
from vdiff_grpc.keys import KeyEntry, KeyFileError, KeyRing
from vdiff_grpc.server import logs

Serve = Callable[..., RunningServer]
Metadata = tuple[tuple[str, str], ...]
WRITER, READER, BOTH, SLOW, FEW = (keys.new_key() for _ in range(5))


def entry(name: str, key: str, *rights: str, **limits: int) -> KeyEntry:
    return KeyEntry(name, (keys.digest(key),), rights, **limits)


ENTRIES = (
    entry("writer", WRITER, "generate"),
    entry("reader", READER, "inspect"),
    entry("both", BOTH, "generate", "inspect"),
    entry("slow", SLOW, "generate", requests_per_minute=2),
    entry("few", FEW, "generate", tokens_per_minute=50),
)


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with keys, reflection and channelz; shared."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.save(path, ENTRIES)
    with running(tiny_config(api_keys=str(path), channelz=True)) as server:
        yield server


def forwards(server: RunningServer) -> int:
    return server.server._engine.statistics.forward_passes


def ask(server: RunningServer, metadata: Metadata, **sampling: Any) -> v1.GenerateResponse:
    asked = generate(spec(**({"max_new_tokens": 4} | sampling)))
    return server.generation.Generate(asked, timeout=10, metadata=metadata)


def reflect(server: RunningServer, metadata: Metadata) -> list[Any]:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return list(stub.ServerReflectionInfo(iter([request]), timeout=10, metadata=metadata))


def sockets(server: RunningServer, metadata: Metadata) -> Any:
    stub = channelz_pb2_grpc.ChannelzStub(server.channel)
    return stub.GetServers(channelz_pb2.GetServersRequest(), timeout=10, metadata=metadata)


def every_call(server: RunningServer) -> dict[str, Callable[[Metadata], Any]]:
    return {
        "generate": lambda given: ask(server, given),
        "stream": lambda given: list(
            server.generation.StreamGenerate(stream(spec()), metadata=given, timeout=10)
        ),
        "count": lambda given: server.model.CountTokens(
            v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[5])), metadata=given
        ),
        "model": lambda given: server.model.GetModelInfo(v1.GetModelInfoRequest(), metadata=given),
        "server": lambda given: server.model.GetServerInfo(
            v1.GetServerInfoRequest(), metadata=given
        ),
        "reflection": lambda given: reflect(server, given),
        "channelz": lambda given: sockets(server, given),
    }


@pytest.mark.parametrize(
    "given",
    [
        pytest.param((), id="none"),
        pytest.param(bearer(keys.new_key()), id="unknown"),
        pytest.param(bearer(WRITER[:-1]), id="cut"),
        pytest.param(bearer(WRITER + "x"), id="longer"),
        pytest.param(bearer("k" * 4000), id="huge"),
        pytest.param(bearer(keys.digest(WRITER)), id="its hash"),
        pytest.param((("authorization", WRITER),), id="no scheme"),
        pytest.param((("authorization", f"Basic {WRITER}"),), id="another scheme"),
        pytest.param((("authorization", "Bearer "),), id="empty"),
        pytest.param((*bearer(WRITER), *bearer(BOTH)), id="two"),
        pytest.param((("x-api-key", WRITER),), id="elsewhere"),
    ],
)
def test_who_has_no_valid_key_gets_nowhere_and_costs_nothing(
    guarded: RunningServer, given: Metadata
) -> None:
    before = forwards(guarded)
    for name, call in every_call(guarded).items():
        with pytest.raises(grpc.RpcError) as refused:
            call(given)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert reason(refused.value) == "UNAUTHENTICATED"
        assert WRITER not in refused.value.details()
    with pytest.raises(grpc.RpcError) as refused:
        guarded.channel.unary_unary("/no.such/Method")(b"", metadata=given)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert forwards(guarded) == before
    assert guarded.server._calls.num_open == 0


def test_a_key_opens_what_it_has_the_right_to_and_nothing_else(guarded: RunningServer) -> None:
    denied = {
        WRITER: {"reflection", "channelz"},
        READER: {"generate", "stream", "count"},
        BOTH: set(),
    }
    for key, names in denied.items():
        before = forwards(guarded)
        for name, call in every_call(guarded).items():
            if name not in names:
                call(bearer(key))
                continue
            with pytest.raises(grpc.RpcError) as refused:
                call(bearer(key))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, name
            assert reason(refused.value) == "PERMISSION_DENIED"
        assert (forwards(guarded) == before) == ("generate" in names)


def test_the_scheme_is_read_in_any_case(guarded: RunningServer) -> None:
    assert ask(guarded, (("authorization", f"bearer {WRITER}"),)).outputs


def test_probes_need_no_key(guarded: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(guarded.channel)
    for service in ("", "vdiff.v1.GenerationService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_the_requests_of_a_key_are_limited_and_nobody_elses(guarded: RunningServer) -> None:
    for _ in range(2):
        ask(guarded, bearer(SLOW))
    before = forwards(guarded)
    with pytest.raises(grpc.RpcError) as refused:
        ask(guarded, bearer(SLOW))
    assert forwards(guarded) == before
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "RATE_LIMIT"
    delay = detail(refused.value, error_details_pb2.RetryInfo).retry_delay
    assert 0 < delay.ToMilliseconds() <= 60_000
    [violation] = detail(refused.value, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "requests_per_minute:slow"
    guarded.model.GetModelInfo(v1.GetModelInfoRequest(), metadata=bearer(SLOW))
    ask(guarded, bearer(WRITER))
    test_probes_need_no_key(guarded)


def test_the_tokens_of_a_key_are_limited_by_what_was_used(guarded: RunningServer) -> None:
    [tokens] = ids(ask(guarded, bearer(WRITER), max_new_tokens=40))
    # 4 of the prompt and at most 40; it ends at once, with the first token
    stop = v1.StopCriteria(token_ids=tokens[:1])
    ended = ask(guarded, bearer(FEW), max_new_tokens=40, stop=stop)
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (4, 0)
    ask(guarded, bearer(FEW), max_new_tokens=30)
    before = forwards(guarded)
    with pytest.raises(grpc.RpcError) as refused:
        ask(guarded, bearer(FEW), max_new_tokens=9)
    assert forwards(guarded) == before
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    [violation] = detail(refused.value, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "tokens_per_minute:few"
    ask(guarded, bearer(FEW), max_new_tokens=8)
    with pytest.raises(grpc.RpcError) as refused:
        ask(guarded, bearer(FEW), max_new_tokens=47)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations(refused.value)) == ["spec.sampling.max_new_tokens"]


def test_the_log_names_the_caller_and_never_the_key(
    guarded: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(guarded, (*bearer(WRITER), ("x-request-id", "let-in")))
    for key in (READER, "not-a-key-of-ours"):
        with pytest.raises(grpc.RpcError):
            ask(guarded, (*bearer(key), ("x-request-id", f"shut-out {key[:3]}")))
    guarded.wait_idle()
    told = {f["request_id"]: f for r in caplog.records if (f := getattr(r, "fields", None))}
    assert told["let-in"]["caller"] == "writer"
    assert told["shut-out vdi"]["caller"] == "reader"
    assert told["shut-out vdi"]["reason"] == "PERMISSION_DENIED"
    assert "caller" not in told["shut-out not"]
    assert told["shut-out not"]["peer"].startswith("ipv4:127.0.0.1:")
    formatter = logs._JsonFormatter()
    everything = "".join(formatter.format(record) for record in caplog.records)
    for secret in (WRITER, READER, keys.digest(WRITER), "not-a-key-of-ours"):
        assert secret not in everything


def test_no_text_of_a_peer_begins_a_log_line(
    guarded: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="vdiff_grpc")
    forged = "x\n2026-01-01 ERROR forged\r\x1b[31m\u2028\x85"
    ascii_only = "x ERROR forged\tyes"  # what gRPC lets through in metadata
    asked = spec()
    asked.request_id = asked.model = forged
    agent = [("grpc.primary_user_agent", forged.encode("ascii", "ignore").decode())]
    with grpc.insecure_channel(guarded.address, agent) as channel:
        stub = v1.GenerationServiceStub(channel)
        for given in (bearer(WRITER), bearer(READER), ()):
            with pytest.raises(grpc.RpcError):
                stub.Generate(generate(asked), metadata=given)
            asked.request_id = ""
            with pytest.raises(grpc.RpcError):
                stub.Generate(generate(asked), metadata=(*given, ("x-request-id", ascii_only)))
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/vdiff.v1.X/ERROR forged")(b"", metadata=given)
    guarded.wait_idle()
    for formatter in (logs._TextFormatter(), logs._JsonFormatter()):
        for record in caplog.records:
            line = formatter.format(record)
            assert line.isprintable(), line


@pytest.mark.parametrize("switch", ["reflection", "channelz"])
def test_reflection_and_channelz_are_there_when_asked_for(serve: Serve, switch: str) -> None:
    call = reflect if switch == "reflection" else sockets
    assert call(serve(**{switch: True}), ())
    with pytest.raises(grpc.RpcError) as refused:
        call(serve(**{switch: False}), ())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_new_key_is_valid_within_a_second_or_two_and_a_removed_one_is_not(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    keys.save(path, ENTRIES[:1])
    server = serve(api_keys=str(path), max_running_rows=1)
    open_call = server.generation.StreamGenerate(
        stream(long_spec(n=8), v1.GRANULARITY_STEPS), metadata=bearer(WRITER)
    )
    assert next(open_call).HasField("started")
    late = keys.new_key()
    keys.save(path, [entry("late", late, "generate")])

    def code(key: str) -> grpc.StatusCode:
        request = v1.GetModelInfoRequest()
        call = server.model.GetModelInfo.with_call
        try:
            return call(request, metadata=bearer(key))[1].code()
        except grpc.RpcError as error:
            return error.code()

    while code(late) is not grpc.StatusCode.OK:  # the test's own time limit ends it otherwise
        pass
    assert code(WRITER) is grpc.StatusCode.UNAUTHENTICATED
    assert next(open_call).HasField("step_update")
    open_call.cancel()


# --- the file ---------------------------------------------------------------


def test_a_ring_looks_at_its_file_once_a_second_and_keeps_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    path = tmp_path / "keys.json"
    keys.save(path, ENTRIES[:1])
    ring = KeyRing(path, lambda: now_s)
    keys.save(path, ENTRIES[1:2])
    assert ring.find(READER) is None
    now_s = 1.0
    assert ring.find(READER) == ENTRIES[1]
    assert ring.find(WRITER) is None
    path.write_text("{")
    for now_s in (2.0, 3.0, 4.0):  # noqa: B007 (the ring's clock)
        assert ring.find(READER) == ENTRIES[1]
    path.unlink()
    now_s = 5.0
    assert ring.find(READER) == ENTRIES[1]
    assert ["is not JSON" in r.getMessage() for r in caplog.records] == [True, False]
    keys.save(path, ENTRIES[:1])
    now_s = 6.0
    assert ring.find(WRITER) == ENTRIES[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", 'must be {"keys": [...]}'),
        ('{"keys": [], "more": 1}', "nothing else"),
        ('{"keys": [{"name": "a"}]}', "keys[0]: sha256 is missing"),
        ('{"keys": [{"name": "a b", "sha256": []}]}', "keys[0]: name ('a b') must be"),
        ('{"keys": [{"name": "a", "sha256": ["12"]}]}', "64 hex digits"),
        ('{"keys": [{"name": "a", "sha256": ["%s"], "rights": ["root"]}]}', "rights of 'a'"),
        ('{"keys": [{"name": "a", "sha256": ["%s"], "key": "k"}]}', "'key' is not a field"),
        (
            '{"keys": [{"name": "a", "sha256": ["%s"], "tokens_per_minute": 0}]}',
            "tokens_per_minute of 'a' must be a whole number, at least 1",
        ),
        (
            '{"keys": [{"name": "a", "sha256": ["%s"]}, {"name": "b", "sha256": ["%s"]}]}',
            "two entries have the same sha256",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text.replace("%s", "ab" * 32))
    with pytest.raises(KeyFileError) as refused:
        KeyRing(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "ab" * 32 not in str(refused.value)


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.save(path, ENTRIES)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load(path) == ENTRIES
    assert all(key not in path.read_text() for key in (WRITER, READER, BOTH))
    path.chmod(0o640)
    keys.save(path, ENTRIES[:1])
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--api-keys", "/nowhere/keys.json"), "/nowhere/keys.json: cannot be read"),
        (("--tls-cert", "/nowhere/server.crt"), "--tls-cert and --tls-key are needed together"),
    ],
)
def test_a_server_that_could_not_guard_itself_does_not_start(
    flags: tuple[str, ...], words: str
) -> None:
    code, log = Process(*flags).end()
    assert (code, log.count("\n")) == (1, 1)
    assert words in log
