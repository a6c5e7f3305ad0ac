"""The container images' files: linted, locked, and their health checks run for real."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from gateway.app import Gateway
from gateway.config import GatewayConfig, load_config
from tests.certificates import Authority
from tests.conftest import RunningServer
from vdiff_grpc.cli.main import main
from vdiff_grpc.config import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
# What compose mounts into Prometheus and Grafana.
OBSERVABILITY = ROOT / "deploy" / "observability"
_EXTRAS = PROJECT["project"]["optional-dependencies"]
_EXPORT = _EXTRAS.get("telemetry", [])
LOCKS = {
    "build": PROJECT["build-system"]["requires"],
    "gateway": [*_EXTRAS["gateway"], *_EXPORT],
    "server-cpu": [*_EXTRAS["server"], *_EXTRAS["parallel"], *_EXPORT],
    "server-cuda": [*_EXTRAS["server"], *_EXTRAS["parallel"], *_EXPORT],
}


def locked(name: str) -> dict[str, tuple[Version, int]]:
    """Package -> its version, and how many hashes it may have."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split("--hash=sha256:")
            package, _, version = pin.strip().partition("==")
            found[package] = Version(version), len(hashes)
    return found


# --- the Dockerfile --------------------------------------------------------------


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    tool = str(Path(sys.executable).parent / "hadolint")
    command = [tool, "--no-color", "--failure-threshold", "style", "-"]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_linter_finds_nothing_and_is_told_to_overlook_nothing() -> None:
    assert "hadolint ignore" not in DOCKERFILE
    ended = hadolint(DOCKERFILE)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert hadolint("FROM debian:latest\nRUN cd /tmp && apt-get install x").returncode == 1


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        copied |= {name.partition("/")[0] for name in line.split()[:-1]}
    for name in re.findall(r"^COPY (requirements/\S+)", DOCKERFILE, re.M):
        pattern = name.replace("${ACCELERATOR}", "*")
        assert [path for path in LOCKS if fnmatch.fnmatch(f"requirements/{path}.txt", pattern)]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_every_target_runs_as_a_numbered_user_with_a_health_check() -> None:
    for target in ("server", "gateway"):
        stage = _stage(target)
        assert re.search(r"^USER 10001:10001$", stage, re.M)
        assert re.search(r"^HEALTHCHECK .*--start-period=", stage, re.M)
        assert re.search(r'^ENTRYPOINT \["', stage, re.M)  # no shell: SIGTERM arrives
        for label in ("title", "description"):
            assert f"org.opencontainers.image.{label}=" in stage


def _stage(target: str) -> str:
    return DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]


def test_the_exposed_ports_are_the_programs_own() -> None:
    assert f"\nEXPOSE {ServerConfig().port} 9464\n" in _stage("server")
    assert f"\nEXPOSE {GatewayConfig().port}\n" in _stage("gateway")


def test_one_version_is_everywhere() -> None:
    version = PROJECT["project"]["version"]
    chart = yaml.safe_load((ROOT / "helm" / "vdiff-grpc" / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    assert f"\nARG VERSION={version}\n" in DOCKERFILE
    for service in ("server", "gateway"):
        assert f"VERSION:-{version}" in COMPOSE["services"][service]["image"]


# --- locks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_what_the_project_asks_for_to_the_hash(name: str) -> None:
    pins = locked(name)
    assert all(num_hashes > 0 for _, num_hashes in pins.values())
    wanted = [] if name == "build" else PROJECT["project"]["dependencies"]
    for text in [*wanted, *LOCKS[name]]:
        wish = Requirement(text)
        version, _ = pins.get(wish.name, ("none", 0))
        assert version in wish.specifier, f"{text} wanted, {version} locked: run make lock"
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


def test_torch_is_the_tested_one_and_not_in_the_gateway() -> None:
    tested = re.search(r"^torch==(\S+)$", (ROOT / "constraints-dev.txt").read_text(), re.M)
    assert tested
    assert str(locked("server-cuda")["torch"][0]) == tested[1]
    assert str(locked("server-cpu")["torch"][0]) == f"{tested[1]}+cpu"
    assert not [package for package in locked("server-cpu") if package.startswith("nvidia")]
    assert not {"torch", "transformers", "numpy"} & set(locked("gateway"))


def test_all_locks_have_one_grpc() -> None:
    assert len({locked(name)["grpcio"][0] for name in LOCKS}) == 1


# --- health checks ---------------------------------------------------------------


def _health_command(target: str) -> list[str]:
    found = re.search(r"HEALTHCHECK [^\[]+CMD (\[.+\])", _stage(target))
    assert found
    command: list[str] = json.loads(found[1])
    return command


def test_the_servers_health_check_follows_its_health(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = _health_command("server")
    assert program == "vdiff-grpc"
    monkeypatch.setenv("VDIFF_ADDRESS", server.address)
    assert main(arguments) == 0
    monkeypatch.setenv("VDIFF_ADDRESS", "127.0.0.1:1")
    assert main(arguments) == 1


@pytest.mark.parametrize("has_tls", [False, True])
async def test_the_gateways_health_check_follows_its_health(has_tls: bool, tmp_path: Path) -> None:
    variables = {"VDIFF_GATEWAY_PORT": "0", "VDIFF_GATEWAY_SERVER": "127.0.0.1:1"}
    if has_tls:
        cert, key = Authority().issue("elsewhere").write(tmp_path, "gateway")
        variables |= {"VDIFF_GATEWAY_TLS_CERT": cert, "VDIFF_GATEWAY_TLS_KEY": key}
    gateway = await Gateway.start(load_config([], variables))
    port = gateway.url.rpartition(":")[2]

    async def check() -> tuple[int | None, str]:
        _, *arguments = _health_command("gateway")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env={**os.environ, **variables, "VDIFF_GATEWAY_PORT": port},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        return process.returncode, errors.decode()

    assert await check() == (0, "")
    gateway.stop_now()
    await gateway.stop()
    code, errors = await check()
    assert (code, errors.startswith(f"port {port}: ")) == (1, True)


# --- compose ---------------------------------------------------------------------


def test_compose_listens_on_this_machine_only_and_confines_what_it_runs() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert re.search(r":\S*\d", service["image"]), "no tag"


def test_compose_sets_options_that_exist_and_ends_late_enough() -> None:
    options = {f"VDIFF_{name.upper()}" for name in ServerConfig.__slots__}
    options |= {f"VDIFF_GATEWAY_{name.upper()}" for name in GatewayConfig.__slots__}
    for name, config in (("server", ServerConfig()), ("gateway", GatewayConfig())):
        service = COMPOSE["services"][name]
        ours = {one for one in service["environment"] if one.startswith("VDIFF_")}
        assert ours <= options
        assert int(service["stop_grace_period"].removesuffix("s")) > config.grace_s + 5
        assert service["build"]["target"] == name


def test_prometheus_scrapes_services_of_compose() -> None:
    scraped = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())["scrape_configs"]
    targets = {
        target for job in scraped for one in job["static_configs"] for target in one["targets"]
    }
    assert targets == {"server:9464", f"gateway:{GatewayConfig().port}"}
    assert {target.partition(":")[0] for target in targets} <= set(COMPOSE["services"])


def test_grafana_asks_the_prometheus_of_compose() -> None:
    source = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.long
@pytest.mark.parametrize("name", ["build", "gateway"])
def test_a_lock_can_be_installed(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes"]
    command += ["--target", str(tmp_path), "-r", str(ROOT / "requirements" / f"{name}.txt")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "grpc").is_dir()
