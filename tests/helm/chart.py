"""Renders the chart with real helm: all features alone, in pairs and at once. Knows no rules."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.helm import tools

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "vdiff-grpc"
OLDEST, NEWEST = "1.27", "1.37"
RELEASE, NAMESPACE = "vdiff-grpc", "models"

Object = dict[str, Any]
# The same loader in C, where libyaml is there: ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

VALUES_FILES = {
    "dev": ("values-dev.yaml",),
    "production": ("values-production.yaml",),
    "replicas": ("values-replicas.yaml",),
    "production replicas": ("values-production.yaml", "values-replicas.yaml"),
}
_PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "clients"}}}
FEATURES: dict[str, Object] = {
    "no gateway": {"gateway": {"enabled": False}},
    "tls": {"server": {"tls": {"secretName": "server-tls"}}},
    "mtls": {
        "server": {
            "tls": {
                "secretName": "server-tls",
                "serverName": "vdiff.example",
                "clientCaSecretName": "client-ca",
                "clientSecretName": "client-tls",
            }
        }
    },
    "keys": {
        "server": {"apiKeys": {"secretName": "keys", "key": "callers.json"}},
        "test": {"apiKey": {"secretName": "test-key", "key": "key"}},
    },
    "gateway keys": {
        "gateway": {
            "apiKeys": {"secretName": "gateway-keys"},
            "upstreamApiKey": {"secretName": "own-key"},
            "tls": {"secretName": "gateway-tls"},
        }
    },
    "pvc": {
        "server": {
            "model": {"source": "pvc", "path": "a/b", "pvc": {"claimName": "w", "subPath": "s"}}
        }
    },
    "image": {"server": {"model": {"source": "image", "image": {"reference": "models/llada:1"}}}},
    "init": {
        "server": {
            "model": {
                "source": "init",
                "path": "llada",
                "init": {
                    "image": "fetch:1",
                    "command": ["fetch"],
                    "args": ["/models/llada"],
                    "env": [{"name": "FROM", "value": "bucket"}],
                    "envFrom": [{"secretRef": {"name": "bucket"}}],
                },
            }
        }
    },
    "mounted": {
        "server": {
            "model": {"source": "mounted", "mountPath": "/weights"},
            "extraVolumes": [{"name": "weights", "hostPath": {"path": "/weights"}}],
            "extraVolumeMounts": [{"name": "weights", "mountPath": "/weights", "readOnly": True}],
        }
    },
    "keda": {"server": {"autoscaling": {"kind": "keda", "keda": {"authenticationRef": "prom"}}}},
    "hpa": {
        "server": {"autoscaling": {"kind": "hpa"}},
        "gateway": {"autoscaling": {"kind": "hpa"}},
    },
    "monitor": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "policy": {"networkPolicy": {"enabled": True}},
    "narrow policy": {
        "networkPolicy": {
            "enabled": True,
            "serverFrom": [_PEER],
            "gatewayFrom": [_PEER],
            "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
            "extraEgress": [{"ports": [{"port": 4317}]}],
        }
    },
    "routes": {
        "server": {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["a.b"]}},
        "gateway": {"ingress": {"enabled": True, "className": "nginx", "hosts": ["a.b", "c.d"]}},
    },
    "placing": {
        component: {
            "nodeSelector": {"gpu": "yes"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}},
                {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            ],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
            "extraArgs": ["--log-level", "debug"],
            "extraEnv": [{"name": "A", "value": "b"}],
            "extraEnvFrom": [{"configMapRef": {"name": "c"}}],
            "image": {"digest": "sha256:" + "0" * 64},
        }
        for component in ("server", "gateway")
    },
    "otlp": {"otlpEndpoint": "http://collector:4317"},
    "ports": {
        "server": {"config": {"host": "::", "port": 6000}, "metrics": {"port": 6001}},
        "gateway": {"config": {"port": 6002}, "service": {"port": 6003}},
    },
    "no metrics": {"server": {"metrics": {"enabled": False}}},
}  # fmt: skip
# One feature contradicts the other, or there is nothing to combine.
_APART = (
    {"tls", "mtls"},
    {"pvc", "image", "init", "mounted"},
    {"keda", "hpa", "no metrics"},
    {"policy", "narrow policy"},
)
# Passed through, whatever else there is.
_ALONE = {"placing", "otlp"}
EVERYTHING = (
    *("mtls", "keys", "gateway keys", "init", "keda", "monitor", "narrow policy", "routes"),
    *("placing", "otlp", "ports"),
)


def combine(*names: str) -> Object:
    """The values of these features together."""
    values: Object = {}
    for name in names:
        _merge(values, deepcopy(FEATURES[name]))
    return values


def template(
    values: Object | None = None,
    *,
    files: tuple[str, ...] = (),
    kubernetes: str = NEWEST,
    release: str = RELEASE,
) -> list[Object]:
    """The rendered objects. Raises ChartError with helm's words."""
    command = ["template", release, str(CHART), "--namespace", NAMESPACE]
    command += ["--kube-version", kubernetes]
    return [one for one in yaml.load_all(run(command, values, files), _LOADER) if one]


class ChartError(Exception):
    """Helm refuses."""


def run(command: list[str], values: Object | None = None, files: tuple[str, ...] = ()) -> str:
    for name in files:
        command = [*command, "--values", str(CHART / name)]
    if values is not None:
        command = [*command, "--values", "-"]
    ended = subprocess.run(
        [tools.helm(), *command],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ended.returncode:
        raise ChartError(ended.stderr + ended.stdout)
    return ended.stdout


@cache
def renders() -> dict[str, list[Object]]:
    """What is rendered in every way that the tests know, by its name; for the newest Kubernetes."""
    tools.helm()
    with ThreadPoolExecutor(4) as pool:
        found = {
            name: pool.submit(template, combine(*features), files=files)
            for name, features, files in _cases()
        }
    return {name: objects.result() for name, objects in found.items()}


def _cases() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    yield "defaults", (), ()
    yield "everything", EVERYTHING, ()
    for name, files in VALUES_FILES.items():
        yield name, (), files
    for feature in FEATURES:
        yield feature, (feature,), ()
    for pair in itertools.combinations([name for name in FEATURES if name not in _ALONE], 2):
        if not any(set(pair) <= apart for apart in _APART):
            yield " + ".join(pair), pair, ()


def _merge(into: Object, more: Object) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


# --- reading what was rendered ---------------------------------------------------


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def named(objects: list[Object], kind: str, suffix: str) -> Object:
    (found,) = (one for one in of_kind(objects, kind) if one["metadata"]["name"].endswith(suffix))
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """(component, metadata, spec) of every pod that the objects make."""
    for one in objects:
        if one["kind"] == "Deployment":
            one = one["spec"]["template"]
        elif one["kind"] != "Pod":
            continue
        metadata = one["metadata"]
        yield metadata["labels"]["app.kubernetes.io/component"], metadata, one["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def environment(container: Object) -> dict[str, str]:
    """Variables with a value of their own."""
    return {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def option(component: str, objects: list[Object], name: str) -> str | None:
    """What server or gateway are told by their environment."""
    prefix = {"server": "VDIFF_", "gateway": "VDIFF_GATEWAY_"}[component]
    (spec,) = (spec for what, _, spec in pods(objects) if what == component)
    return environment(spec["containers"][0]).get(prefix + name.upper())
