"""`vdiff-grpc health`, as probes call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.conftest import running, tiny_config
from vdiff_grpc.cli.health import READY
from vdiff_grpc.cli.main import main
from vdiff_grpc.server.health import SERVICES


def test_a_serving_server_is_healthy(server_address: str, capsys: pytest.CaptureFixture) -> None:
    assert READY in SERVICES
    assert main(("health", "--address", server_address)) == 0
    assert main(("health", "--address", server_address, "--service", "")) == 0
    assert capsys.readouterr().out == "SERVING\nSERVING\n"


def test_a_draining_server_lives_but_is_not_ready(serve, capsys: pytest.CaptureFixture) -> None:
    server = serve(drain_delay_s=0.0)
    server.call(server.server.drain())
    assert main(("health", "--address", server.address)) == 1
    assert main(("health", "--address", server.address, "--service", "")) == 0
    captured = capsys.readouterr()
    assert captured.err == f"vdiff-grpc: {server.address}: NOT_SERVING\n"


def test_an_unknown_service_and_nobody_at_all_are_not_healthy(
    server_address: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(("health", "--address", server_address, "--service", "nothing")) == 1
    assert "NOT_FOUND" in capsys.readouterr().err
    assert main(("health", "--address", "127.0.0.1:1")) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_health_is_asked_over_mtls_under_the_certificates_name(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    authority = Authority()
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    cert, key = authority.issue().write(tmp_path, "server")
    own_cert, own_key = authority.issue("probe").write(tmp_path, "probe")
    with running(tiny_config(tls_cert=cert, tls_key=key, tls_client_ca=str(ca))) as server:
        secure = ("--tls-ca", str(ca), "--tls-cert", own_cert, "--tls-key", own_key)
        address = (
            "[::ffff:127.0.0.1]:" + server.address.rpartition(":")[2]
        )  # not in the certificate
        ask = ("health", "--timeout", "3", "--address", address)
        assert main((*ask, *secure, "--tls-name", "localhost")) == 0
        assert main((*ask, *secure)) == 1
        assert main((*ask, *secure, "--tls-name", "elsewhere")) == 1
        assert main((*ask, "--tls-ca", str(ca), "--tls-name", "localhost")) == 1
        assert main((*ask, "--tls-name", "localhost")) == 1
        assert "--tls-name goes with --tls-ca" in capsys.readouterr().err
