"""Keys, limits and TLS between an HTTP client, the gateway and its server."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.credentials import CredentialError
from tests.certificates import Authority
from tests.conftest import RunningServer, running, tiny_config
from tests.gateway.conftest import RunningGateway, eventually
from vdiff_grpc import keys
from vdiff_grpc.keys import KeyEntry

Serve = Callable[..., RunningServer]
GatewayOver = Callable[..., RunningGateway]
KEY, READER, SLOW = keys.new_key(), keys.new_key(), keys.new_key()
FIELDS = {"prompt": [5, 17], "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        KeyEntry("web", (keys.digest(KEY),)),
        KeyEntry("reader", (keys.digest(READER),), ("inspect",)),
        KeyEntry("slow", (keys.digest(SLOW),), requests_per_minute=1),
    ]
    keys.save(path, entries)
    with running(tiny_config(api_keys=str(path))) as server:
        yield server


def forwards(server: RunningServer) -> int:
    return server.server._engine.statistics.forward_passes


def openai_client(gateway: RunningGateway, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def test_the_clients_key_is_the_servers_to_judge(
    guarded: RunningServer, gateway_over: GatewayOver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = gateway_over(guarded.address)
    with openai_client(gateway, KEY) as client:
        assert client.completions.create(
            model="tiny", prompt=[5], max_tokens=4, extra_body={"ignore_eos": True}
        ).choices
        assert client.models.list().data[0].id == "tiny"
    before = forwards(guarded)
    for stream in (False, True):
        with openai_client(gateway, "sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.completions.create(model="tiny", prompt=[5], stream=stream)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.type == "invalid_request_error"
            assert refused.value.response.headers["www-authenticate"] == "Bearer"
        with openai_client(gateway, READER) as client:
            with pytest.raises(openai.PermissionDeniedError) as denied:
                client.completions.create(model="tiny", prompt=[5], stream=stream)
            assert denied.value.code == "permission_denied"
    with httpx.Client(base_url=gateway.url) as http:
        for reply in (http.post("/v1/completions", json=FIELDS), http.get("/v1/models")):
            assert reply.status_code == 401
            assert "no API key" in reply.json()["error"]["message"]
    assert forwards(guarded) == before
    log = "".join(json.dumps(vars(record), default=str) for record in caplog.records)
    assert not any(key in log for key in (KEY, READER, "sk-wrong"))


def test_what_belongs_to_no_client_needs_no_key(
    guarded: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(guarded.address)
    with httpx.Client(base_url=gateway.url) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/version").json()["server_version"] is None
        known = http.get("/version", headers={"authorization": f"Bearer {KEY}"}).json()
        assert known["server_version"] == known["version"]
        assert http.get("/docs").status_code == 200


def test_a_keys_limit_is_429_with_retry_after(
    guarded: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(guarded.address)
    headers = {"authorization": f"Bearer {SLOW}"}
    with httpx.Client(base_url=gateway.url, headers=headers) as http:
        assert http.post("/v1/completions", json=FIELDS).status_code == 200
        refused = http.post("/v1/completions", json=FIELDS)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_the_gateway_may_have_a_key_of_its_own(
    guarded: RunningServer, gateway_over: GatewayOver, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    gateway = gateway_over(guarded.address, upstream_api_key_file=str(path))
    with httpx.Client(base_url=gateway.url) as http:
        assert http.post("/v1/completions", json=FIELDS).status_code == 200
        other = {"authorization": "Bearer sk-of-somebody-else"}
        assert http.post("/v1/completions", json=FIELDS, headers=other).status_code == 200
        assert http.get("/version").json()["server_version"]
        path.write_text(READER)
        eventually(lambda: http.post("/v1/completions", json=FIELDS).status_code == 503)
        refused = http.post("/v1/completions", json=FIELDS)
        assert "the gateway's own API key" in refused.json()["error"]["message"]


def test_tls_all_the_way(
    serve: Serve, gateway_over: GatewayOver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vdiff_grpc")
    authority = Authority()
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    cert, key = authority.issue().write(tmp_path, "server")
    server = serve(tls_cert=cert, tls_key=key, tls_client_ca=str(ca))
    own_cert, own_key = authority.issue("the-gateway").write(tmp_path, "gateway")
    https = {"tls_cert": own_cert, "tls_key": own_key}
    gateway = gateway_over(
        server.address,
        upstream_ca=str(ca),
        upstream_cert=own_cert,
        upstream_cert_key=own_key,
        **https,
    )
    assert gateway.url.startswith("https://")
    trust = ssl.create_default_context(cafile=str(ca))
    with httpx.Client(base_url=gateway.url, verify=trust) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.post("/v1/completions", json=FIELDS).status_code == 200
        server.wait_idle()
        callers = [getattr(record, "fields", {}).get("caller") for record in caplog.records]
        assert "the-gateway" in callers
        host, _, port = gateway.url.removeprefix("https://").rpartition(":")

        def serial() -> int:
            pem = ssl.get_server_certificate((host, int(port)), timeout=5)
            return x509.load_pem_x509_certificate(pem.encode()).serial_number

        new = authority.issue()
        assert serial() != new.serial
        new.write(tmp_path, "gateway")
        eventually(lambda: serial() == new.serial)
        assert http.get("/health").status_code == 200
    plain = gateway_over(server.address)
    stranger = gateway_over(server.address, upstream_ca=str(ca))
    for refused in (plain, stranger):
        with httpx.Client(base_url=refused.url) as http:
            assert http.post("/v1/completions", json=FIELDS).status_code == 503


@pytest.mark.parametrize(
    ("setting", "content", "words"),
    [
        ("upstream_api_key_file", "two words", "must be one API key"),
        ("upstream_ca", None, "cannot be read"),
    ],
)
async def test_files_that_cannot_be_used_are_named_at_the_start(
    tmp_path: Path, setting: str, content: str | None, words: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CredentialError) as refused:
        await Gateway.start(GatewayConfig(port=0, **{setting: str(path)}))
    assert str(path) in str(refused.value)
    assert words in str(refused.value)
    assert "two words" not in str(refused.value)


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="tls_cert and tls_key are needed together"):
        GatewayConfig(tls_cert="x")
