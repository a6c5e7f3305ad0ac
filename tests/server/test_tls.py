"""TLS and mTLS over real sockets: who gets in, and certificates that change meanwhile."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Pair
from tests.conftest import RunningServer, tiny_config
from tests.server.calls import generate, long_spec, spec, stream
from vdiff_grpc import v1
from vdiff_grpc.server.app import Server
from vdiff_grpc.server.tls import TlsError

Serve = Callable[..., RunningServer]
_WAIT_S = 5


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("Another CA")


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """Options of a server with TLS."""
    cert, key = authority.issue().write(tmp_path, "server")
    return {"tls_cert": cert, "tls_key": key}


@pytest.fixture
def mutual(files: dict[str, str], authority: Authority, tmp_path: Path) -> dict[str, str]:
    """Options of a server that wants certificates."""
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    return files | {"tls_client_ca": str(tmp_path / "ca.crt")}


def channel(server: RunningServer, ca: Authority, pair: Pair | None = None) -> grpc.Channel:
    shown = (pair.key, pair.cert) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.pem, *shown)
    # A channel of its own connection: gRPC shares them between equal channels.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.secure_channel(server.address, credentials, options)


def ask(channel: grpc.Channel, **arguments: Any) -> v1.GenerateResponse:
    with channel:
        stub = v1.GenerationServiceStub(channel)
        return stub.Generate(generate(spec(max_new_tokens=4)), timeout=_WAIT_S, **arguments)


def forwards(server: RunningServer) -> int:
    return server.server._engine.statistics.forward_passes


def serial_of(server: RunningServer) -> int:
    """The certificate's that a new connection sees."""
    host, _, port = server.address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=_WAIT_S)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def assert_refused(server: RunningServer, *channels: grpc.Channel) -> None:
    before = forwards(server)
    for one in channels:
        with pytest.raises(grpc.RpcError) as refused:
            ask(one)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert forwards(server) == before
    assert server.server._calls.num_open == 0


def healthy(channel: grpc.Channel) -> bool:
    """As grpc_health_probe asks."""
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="vdiff.v1.GenerationService")
    reply = stub.Check(request, timeout=_WAIT_S)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def test_tls_serves_those_who_trust_it_and_refuses_plaintext(
    serve: Serve, files: dict[str, str], authority: Authority, stranger: Authority
) -> None:
    server = serve(**files)
    assert ask(channel(server, authority)).outputs
    with channel(server, authority) as probe:
        assert healthy(probe)
    assert_refused(server, grpc.insecure_channel(server.address), channel(server, stranger))
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_WAIT_S) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while raw.recv(4096):
            pass


def test_mutual_tls_wants_a_certificate_of_its_authority_that_is_still_valid(
    serve: Serve,
    mutual: dict[str, str],
    authority: Authority,
    stranger: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="vdiff_grpc")
    server = serve(**mutual)
    known = authority.issue("front\nend")
    assert ask(channel(server, authority, known)).outputs
    assert_refused(
        server,
        channel(server, authority),
        channel(server, authority, stranger.issue("front")),
        channel(server, authority, authority.issue("front", days=-1)),
    )
    with channel(server, authority, known) as probe:
        assert healthy(probe)
    server.wait_idle()
    callers = [getattr(record, "fields", {}).get("caller") for record in caplog.records]
    assert r"front\nend" in callers
    assert "front" not in callers


def test_an_expired_server_is_not_trusted(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue(days=-1).write(tmp_path, "old")
    server = serve(tls_cert=cert, tls_key=key)
    assert_refused(server, channel(server, authority))


def test_new_connections_see_a_new_certificate_and_open_streams_go_on(
    serve: Serve, files: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    server = serve(**files, max_running_rows=1)
    old = serial_of(server)
    with channel(server, authority) as early:
        call = v1.GenerationServiceStub(early).StreamGenerate(
            stream(long_spec(n=4), v1.GRANULARITY_STEPS), timeout=30
        )
        assert next(call).HasField("started")
        new = authority.issue()
        new.write(tmp_path, "server")
        assert serial_of(server) == new.serial != old
        with channel(server, authority) as late:
            assert healthy(late)
        assert list(call)[-1].HasField("finished")
        assert healthy(early)


def test_a_new_authority_shuts_out_whom_the_old_one_let_in(
    serve: Serve,
    mutual: dict[str, str],
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
) -> None:
    server = serve(**mutual)
    of_old, of_new = authority.issue(), stranger.issue()
    assert ask(channel(server, authority, of_old)).outputs
    (tmp_path / "new.crt").write_bytes(stranger.pem)
    (tmp_path / "new.crt").replace(mutual["tls_client_ca"])
    assert_refused(server, channel(server, authority, of_old))
    assert ask(channel(server, authority, of_new)).outputs


def test_a_broken_new_certificate_leaves_the_old_one_and_is_logged_once(
    serve: Serve,
    files: dict[str, str],
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(**files)
    old = serial_of(server)
    Path(files["tls_cert"]).write_text("no certificate")
    assert {serial_of(server) for _ in range(3)} == {old}
    assert ask(channel(server, authority)).outputs
    said = [record for record in caplog.records if record.name == "vdiff_grpc.server.tls"]
    assert len(said) == 1
    assert files["tls_cert"] in said[0].getMessage()
    Path(files["tls_cert"]).write_bytes(authority.issue().cert)  # another key's
    assert serial_of(server) == old
    new = authority.issue()
    new.write(tmp_path, "server")
    assert serial_of(server) == new.serial


async def test_files_that_do_not_fit_are_named_at_the_start(
    files: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    def wrong(**changes: str) -> str:
        with pytest.raises(TlsError) as refused:
            Server(tiny_config(**(files | changes)))
        return str(refused.value)

    assert "--tls-key" in wrong(tls_key="")
    assert "/nowhere.crt: cannot be read: No such file" in wrong(tls_cert="/nowhere.crt")
    _, other = authority.issue().write(tmp_path, "other")
    assert f"{files['tls_cert']}, {other}" in wrong(tls_key=other)
    empty = tmp_path / "empty"
    empty.touch()
    assert f"{empty}: no certificates" in wrong(tls_client_ca=str(empty))
