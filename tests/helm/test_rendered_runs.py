"""What the chart renders, run here: server and gateway with its variables, its probes, its test."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from gateway.app import Gateway
from tests.certificates import Authority
from tests.conftest import RunningServer, running
from tests.helm import tools
from tests.helm.chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    VALUES_FILES,
    Object,
    combine,
    containers,
    of_kind,
    pods,
    run,
    template,
)
from tests.helm.test_invariants import told
from vdiff_grpc.cli import main as cli

# The name in the tests' certificates.
VALUES: Object = combine("mtls", "keys", "gateway keys")
VALUES["server"]["tls"]["serverName"] = "localhost"


@dataclass(frozen=True)
class Cluster:
    """Secrets below a folder in place of /etc/vdiff, and a server on a free port."""

    folder: Path
    objects: list[Object]
    server: RunningServer

    def here(self, command: list[str]) -> list[str]:
        """A container's command with this machine's paths and address."""
        assert command[0] == "vdiff-grpc"
        moved = [one.replace("/etc/vdiff", str(self.folder)) for one in command[1:]]
        return [
            f"--address={self.server.address}" if one.startswith("--address=") else one
            for one in moved
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("etc")
    authority = Authority()
    for name in ("tls", "client-tls", "server-ca", "client-ca", "api-keys", "upstream-key"):
        (folder / name).mkdir()
    for name in ("tls", "client-tls"):
        authority.issue().write(folder / name, "tls")
    for name in ("server-ca", "client-ca"):
        (folder / name / "ca.crt").write_bytes(authority.pem)
    keys = folder / "api-keys" / "callers.json"
    objects = template(VALUES)
    (spec,) = (spec for component, _, spec in pods(objects) if component == "server")
    config = told("server", _moved(spec, folder))
    assert config.api_keys == str(keys)
    key = _made(keys, folder)
    (folder / "upstream-key" / "api-key").write_text(key)
    (folder / "key").write_text(key)
    here = replace(config, host="127.0.0.1", port=0, metrics_port=0, threads=1)
    with running(here) as server:
        yield Cluster(folder, objects, server)


def _made(keys: Path, folder: Path) -> str:
    """A key file with one caller, and its key; the gateway's has the same."""
    from vdiff_grpc import keys as keys_module

    key = keys_module.new_key()
    entry = {"name": "chart", "sha256": [keys_module.digest(key)]}
    for path in (keys, folder / "api-keys" / "keys.json"):
        path.write_text(json.dumps({"keys": [entry]}))
    return key


def _moved(spec: Object, folder: Path) -> Object:
    moved: Object = json.loads(json.dumps(spec).replace("/etc/vdiff", str(folder)))
    return moved


def test_the_servers_probes_pass_over_mtls(cluster: Cluster) -> None:
    (spec,) = (spec for component, _, spec in pods(cluster.objects) if component == "server")
    for kind in ("startup", "readiness", "liveness"):
        command = spec["containers"][0][f"{kind}Probe"]["exec"]["command"]
        assert cli.main(cluster.here(command)) == 0
    without = [one for one in cluster.here(command) if not re.match("--tls-(cert|key)=", one)]
    assert cli.main(without) == 1


def test_helm_test_checks_health_and_generates_with_its_key(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pod,) = of_kind(cluster.objects, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    health, generate = containers(pod["spec"])
    assert cli.main(cluster.here(health["command"])) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert cli.main(cluster.here(generate["command"])) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    (variable,) = generate["env"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "test-key", "key": "key"}
    monkeypatch.setenv(variable["name"], (cluster.folder / "key").read_text())
    assert cli.main(cluster.here(generate["command"])) == 0
    assert len(capsys.readouterr().out.strip()) > 3


async def test_the_gateway_reaches_the_server_with_its_certificate_and_key(
    cluster: Cluster,
) -> None:
    (spec,) = (spec for component, _, spec in pods(cluster.objects) if component == "gateway")
    config = told("gateway", _moved(spec, cluster.folder))
    address = cluster.server.address
    gateway = await Gateway.start(replace(config, host="127.0.0.1", port=0, server=address))
    try:
        async with httpx.AsyncClient(base_url=gateway.url, verify=False) as client:
            for kind in ("startup", "readiness", "liveness"):
                probe = spec["containers"][0][f"{kind}Probe"]["httpGet"]
                assert (await client.get(probe["path"])).status_code == 200
            ask = {"model": "vdiff-demo", "prompt": "Once", "max_tokens": 4}
            assert (await client.post("/v1/completions", json=ask)).status_code == 401
            key = (cluster.folder / "key").read_text()
            mine = {"authorization": f"Bearer {key}"}
            assert (await client.post("/v1/completions", json=ask, headers=mine)).status_code == 200
    finally:
        gateway.stop_now()
        await gateway.stop()
        await asyncio.sleep(0)


# --- what the user is told to type ------------------------------------------------


@pytest.mark.parametrize("name", ["defaults", *VALUES_FILES, "mtls"])
def test_the_notes_commands_are_understood(name: str, tmp_path: Path) -> None:
    values = combine(name) if name == "mtls" else None
    command = ["install", RELEASE, str(CHART), "--dry-run=client", "--namespace", NAMESPACE]
    notes = run(command, values, VALUES_FILES.get(name, ())).partition("NOTES:")[2]
    lines = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    objects = template(values, files=VALUES_FILES.get(name, ()))
    for line in lines:
        understood(line, objects, tmp_path)
    assert {line.partition(" ")[0] for line in lines} >= {"kubectl", "helm", "vdiff-grpc"}


def understood(line: str, objects: list[Object], folder: Path) -> None:
    """Raises AssertionError for a command that its program would refuse, or that names nothing."""
    words = [word.strip("'\"") for word in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", line)]
    if words[0] == "kubectl":
        arguments = words[1 : words.index(">")] if ">" in words else words[1:]
        for word in arguments:
            kind, _, name = word.partition("/")
            if kind in ("service", "deployment"):
                assert (kind, name) in {
                    (one["kind"].lower(), one["metadata"]["name"]) for one in objects
                }, line
            if word.startswith("--from-file="):
                (folder / word.partition("=")[2]).touch()
        if arguments[2] == "port-forward":
            port = int(arguments[4].partition(":")[2])
            service = arguments[3].removeprefix("service/")
            (found,) = (o for o in of_kind(objects, "Service") if o["metadata"]["name"] == service)
            assert port in [one["port"] for one in found["spec"]["ports"]], line
        ended = subprocess.run(
            [tools.kubectl(), "--server=http://127.0.0.1:1", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # It got as far as the API server, which is not there.
        assert re.search(r"127\.0\.0\.1:1.* refused", ended.stderr), (line, ended.stderr)
    elif words[0] == "vdiff-grpc":
        cli._parser().parse_args(words[1:])
    elif words[0] == "helm":
        ended = subprocess.run(
            [tools.helm(), *words[1:], "--kube-apiserver=http://127.0.0.1:1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "refused" in ended.stderr or "unreachable" in ended.stderr, (line, ended.stderr)
    else:
        assert words[0] in ("curl", *(word for word in words if word.startswith("dns:///"))), line


def test_the_guides_commands_are_understood(tmp_path: Path) -> None:
    objects = template()
    guide = (CHART.parents[1] / "docs" / "deployment.md").read_text()
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", guide, re.M | re.S)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`(kubectl [^`]+|helm show [^`]+)`", guide)
    programs = {line.partition(" ")[0] for line in lines}
    assert programs == {"docker", "helm", "kubectl", "vdiff-grpc"}
    dockerfile = (CHART.parents[1] / "Dockerfile").read_text()
    for line in lines:
        words = line.split()
        if words[:3] == ["helm", "upgrade", "--install"]:
            files = tuple(
                Path(after).name
                for before, after in itertools.pairwise(words)
                if before == "--values"
            )
            assert template(files=files, release=words[3])
            assert words[4] == "helm/vdiff-grpc"
        elif words[:2] == ["helm", "show"]:
            assert "server:" in run(["show", "values", str(CHART)])
        elif words[:2] == ["docker", "build"]:
            for before, after in itertools.pairwise(words):
                if before == "--target":
                    assert f" AS {after}\n" in dockerfile
                elif before == "--build-arg":
                    assert f"\nARG {after.partition('=')[0]}=" in dockerfile
        elif words[:2] != ["docker", "compose"]:
            understood(line, objects, tmp_path)
