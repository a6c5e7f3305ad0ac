"""`vdiff-grpc keys`, and commands that show a key or a certificate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.conftest import running, tiny_config
from vdiff_grpc import keys
from vdiff_grpc.cli.main import main


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VDIFF_API_KEY", raising=False)
    monkeypatch.setenv("VDIFF_API_KEYS", str(tmp_path / "keys.json"))
    return tmp_path / "keys.json"


@pytest.fixture
def call(path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_key_is_printed_once_and_its_hash_is_kept(call, path: Path) -> None:
    code, out, err = call(
        *("keys", "add", "search", "--rights", "generate,inspect"),
        *("--requests-per-minute", "60", "--tokens-per-minute", "5000"),
        *("--min-priority", "-3"),
    )
    assert (code, out.count("\n")) == (0, 1)
    assert "only time" in err
    key = out.strip()
    assert len(key) > 40
    [entry] = keys.load(path)
    assert entry.sha256 == (keys.digest(key),)
    assert (entry.name, entry.rights) == ("search", ("generate", "inspect"))
    assert (entry.requests_per_minute, entry.tokens_per_minute) == (60, 5000)
    assert entry.min_priority == -3
    assert key not in path.read_text()
    assert call("keys", "list") == (
        0,
        "search\tgenerate,inspect\t60 requests per minute\t5000 tokens per minute\t"
        "priority -3 and above\n",
        "",
    )


def test_a_rotated_key_is_valid_beside_the_last_one(call, path: Path) -> None:
    made = [call("keys", "add", "web")[1].strip()]
    made += [call("keys", "rotate", "web")[1].strip() for _ in range(2)]
    ring = keys.KeyRing(path)
    assert [ring.find(key) is not None for key in made] == [False, True, True]
    call("keys", "add", "other")
    assert call("keys", "remove", "web")[0] == 0
    assert [entry.name for entry in keys.load(path)] == ["other"]


def test_what_cannot_be_is_said_in_one_line(call, path: Path, capsys, monkeypatch) -> None:
    call("keys", "add", "web")
    for arguments, words in (
        (("add", "web"), "web has a key already"),
        (("rotate", "nobody"), "nobody has no key"),
        (("--file", "/nowhere/keys.json", "list"), "/nowhere/keys.json: cannot be read"),
    ):
        code, out, err = call("keys", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    for arguments, words in (
        (("add", "a\nb"), "must be 1 to 64 letters"),
        (("add", "a", "--rights", "root"), "'root' is not one of generate, inspect"),
        (("add", "a", "--tokens-per-minute", "0"), "0 is not at least 1"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(("keys", *arguments))
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    monkeypatch.delenv("VDIFF_API_KEYS")
    assert "Give --file" in call("keys", "list")[2]


def test_a_command_shows_its_key_and_its_certificate(
    call, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = call("keys", "add", "me")[1].strip()
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    cert, cert_key = authority.issue().write(tmp_path, "server")
    own_cert, own_key = authority.issue("me").write(tmp_path, "me")
    tls = {"tls_cert": cert, "tls_key": cert_key, "tls_client_ca": str(tmp_path / "ca.crt")}
    with running(tiny_config(model="demo", api_keys=str(path), **tls)) as server:
        ask = ("generate", "Once", "--max-new-tokens", "4", "--address", server.address)
        secure = ("--tls-ca", tls["tls_client_ca"], "--tls-cert", own_cert, "--tls-key", own_key)
        code, _, err = call(*ask, *secure)
        assert (code, "UNAUTHENTICATED" in err) == (1, True)
        monkeypatch.setenv("VDIFF_API_KEY", key)
        assert call(*ask, *secure)[0] == 0
        monkeypatch.delenv("VDIFF_API_KEY")
        (tmp_path / "key").write_text(key + "\n")
        code, out, _ = call(*ask, *secure, "--json", "--api-key-file", str(tmp_path / "key"))
        assert json.loads(out)["usage"]["completion_tokens"] == 4
    code, _, err = call(*ask, "--api-key-file", "/nowhere/key")
    assert (code, err) == (
        1,
        "vdiff-grpc: /nowhere/key: cannot be read: No such file or directory\n",
    )
    code, _, err = call(*ask, "--tls-cert", own_cert)
    assert (code, "--tls-cert and --tls-key go together" in err) == (1, True)


def test_run_refuses_tls(call) -> None:
    code, _, err = call("run", "--tls-cert", "a", "--tls-key", "b")
    assert (code, "without TLS" in err) == (1, True)
