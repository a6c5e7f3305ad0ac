"""Values: every option of both programs, nothing unknown, nothing that has no effect."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.config import GatewayConfig, load_config
from tests.helm.chart import (
    CHART,
    EVERYTHING,
    ROOT,
    ChartError,
    Object,
    combine,
    environment,
    named,
    run,
    template,
)
from vdiff_grpc import config
from vdiff_grpc.config import ServerConfig

MAKER = runpy.run_path(str(ROOT / "helm" / "make_schema.py"))
SCHEMA: Object = MAKER["schema"]()
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
# Set by sections of the values; config refuses them.
OWN = {
    "server": ("model", "tls_cert", "tls_key", "tls_client_ca", "api_keys", "metrics_port"),
    "gateway": ("tls_cert", "tls_key", "api_keys"),
}
# Other values than the default, where "one more" or "the other one" will not do.
OTHERS = {
    "host": "::",
    "served_model_name": ["one", "two"],
    "device": "cuda:1",
    "dtype": "bfloat16",
    "attention": "varlen",
    "quantization": "torchao-int8",
    "overload": "refuse",
    "log_level": "warning",
    "log_format": "json",
    "server": "10.0.0.1:1,10.0.0.2:1",
    "trusted_proxies": "10.0.0.0/8",
    "cors_origins": "https://a.example",
}


def other(name: str, default: Any) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default + 0.5
    return {"off": "on"}.get(default, "/a/b")


def rendered_environment(component: str, options: Object) -> dict[str, str]:
    objects = template({component: {"config": options}})
    pod = named(objects, "Deployment", f"-{component}")["spec"]["template"]["spec"]
    return environment(pod["containers"][0])


def test_the_schema_has_the_options_of_today() -> None:
    written = (CHART / "values.schema.json").read_text()
    assert written == MAKER["text"](), "run: python helm/make_schema.py"


def test_every_option_of_the_server_reaches_it() -> None:
    options = {
        option.name: other(option.name, option.default)
        for option in fields(ServerConfig)
        if option.name not in OWN["server"]
    }
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    told = config.from_flags(parser.parse_args([]), rendered_environment("server", options))
    for name, value in options.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(told, name) == expected != getattr(ServerConfig(), name), name


def test_every_option_of_the_gateway_reaches_it() -> None:
    options = {
        option.name: other(option.name, option.default)
        for option in fields(GatewayConfig)
        if option.default is not MISSING and option.name not in OWN["gateway"]
    }
    told = load_config([], rendered_environment("gateway", options))
    for name, value in options.items():
        assert getattr(told, name) == value != getattr(GatewayConfig(), name), name


@pytest.mark.parametrize(
    ("given", "arrives"),
    [(64 * 1024 * 1024, "67108864"), (2**31 - 1, "2147483647"), (12345678, "12345678")],
)
def test_large_numbers_arrive_as_whole_numbers(given: int, arrives: str) -> None:
    told = rendered_environment("server", {"max_message_bytes": given})
    assert told["VDIFF_MAX_MESSAGE_BYTES"] == arrives


def test_an_unquoted_on_is_a_switch() -> None:
    told = rendered_environment("gateway", yaml.safe_load("upstream_tls: on"))
    assert told["VDIFF_GATEWAY_UPSTREAM_TLS"] == "on"


def test_the_defaults_of_chart_and_programs_differ_on_purpose_only() -> None:
    on_purpose = {"host", "log_format", "drain_delay_s", "grace_s", "max_connection_age_s"}
    for component, kind in (("server", ServerConfig), ("gateway", GatewayConfig)):
        for name, value in VALUES[component]["config"].items():
            if name not in on_purpose:
                assert value == getattr(kind(), name), f"{component}.{name}"


@pytest.mark.parametrize(
    ("component", "name"), [(component, name) for component in OWN for name in OWN[component]]
)
def test_what_a_section_sets_is_refused_in_config(component: str, name: str) -> None:
    with pytest.raises(
        ChartError, match=f"{component}.config.{name} is the chart's to set|'{name}' not allowed"
    ):
        template({component: {"config": {name: 1 if name == "metrics_port" else "x"}}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"server": {"model": {"source": "pvc"}}}, "needs server.model.pvc.claimName"),
        ({"server": {"model": {"source": "image"}}}, "needs server.model.image.reference"),
        ({"server": {"model": {"source": "init"}}}, "needs server.model.init.image"),
        ({"server": {"tls": {"clientCaSecretName": "x"}}}, "need server.tls.secretName"),
        (
            {"server": {"tls": {"secretName": "x", "clientCaSecretName": "x"}}},
            "needs server.tls.clientSecretName",
        ),
        ({"server": {"grpcRoute": {"enabled": True}}}, "needs server.grpcRoute.parentRefs"),
        ({"gateway": {"ingress": {"enabled": True}}}, "needs gateway.ingress.hosts"),
        (
            {"server": {"autoscaling": {"kind": "keda"}, "metrics": {"enabled": False}}},
            "needs server.metrics.enabled",
        ),
        (
            {"server": {"autoscaling": {"kind": "hpa", "minReplicas": 5}}},
            "minReplicas must not be above maxReplicas",
        ),
        (
            {
                "server": {
                    "config": {"tensor_parallel_size": 4},
                    "resources": {"limits": {"nvidia.com/gpu": 2}},
                }
            },
            "tensor_parallel_size 4 needs as many GPUs; .* nvidia.com/gpu: 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_words(values: Object, words: str) -> None:
    with pytest.raises(ChartError, match=words):
        template(values)


# --- the schema ------------------------------------------------------------------


def objects(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Object]]:
    if schema.get("type") == "object":
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects(inner, (*path, name))
    if "items" in schema:
        yield from objects(schema["items"], (*path, "*"))


def placed(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = [value] if name == "*" else {name: value}
    return value


CLOSED = [path for path, schema in objects(SCHEMA) if schema.get("additionalProperties") is False]


def test_only_objects_of_kubernetes_are_open() -> None:
    is_open = {path for path, schema in objects(SCHEMA) if "additionalProperties" not in schema}
    names = {"affinity", "podSecurityContext", "securityContext", "global"}
    lists = {"tolerations", "topologySpreadConstraints", "parentRefs", "claims", "env", "envFrom"}
    lists |= {name for name in SCHEMA["properties"]["server"]["properties"] if name[:5] == "extra"}
    lists |= {"serverFrom", "gatewayFrom", "metricsFrom", "extraEgress"}
    for path in is_open:
        assert path[-1] in names or (path[-1] == "*" and path[-2] in lists), path


def test_helm_refuses_an_unknown_value_at_every_level() -> None:
    assert len(CLOSED) > 40

    def refused(path: tuple[str, ...]) -> str:
        with pytest.raises(ChartError) as error:
            template(placed(path, {"nonsense": 1}))
        return str(error.value)

    with ThreadPoolExecutor(4) as pool:
        for path, words in zip(CLOSED, pool.map(refused, CLOSED), strict=True):
            assert "additional properties 'nonsense' not allowed" in words, path


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(values, dict) and values:
        for name, inner in values.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, values


def test_a_wrong_type_is_refused_wherever_there_is_a_value() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid(VALUES)
    for path, value in leaves(VALUES):
        if not {"affinity", "podSecurityContext", "securityContext"}.isdisjoint(path[:-1]):
            continue  # Kubernetes' own
        if isinstance(value, list):
            wrong: Any = {"a": "b"}
        else:
            wrong = ["a"] if isinstance(value, dict) else {"a": ["b"]}
        assert not validator.is_valid(placed(path, wrong)), path
    # and helm's validator is of the same opinion
    for values in (
        {"server": {"replicas": "two"}},
        {"server": {"config": {"max_n": 1.5}}},
        {"server": {"config": {"reflection": "maybe"}}},
        {"server": {"config": {"device": "gpu"}}},
        {"server": {"config": {"port": 0}}},
        {"gateway": {"config": {"log_level": "loud"}}},
        {"server": {"resources": {"requests": {"memory": None}}}},
        {"server": {"image": {"digest": "sha256:1"}}},
        {"server": {"config": {"port": None}}},
    ):
        with pytest.raises(ChartError, match="don't meet the specifications of the schema"):
            template(values)


def test_the_values_are_few_and_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    assert len(lines) < 400
    sections = [number for number, line in enumerate(lines) if line and line[0].isalpha()]
    without = {
        lines[number]
        for number in sections
        if not lines[number - 1].startswith("#") and not lines[number + 1].strip().startswith("#")
    }
    assert without <= {"gateway:", 'fullnameOverride: ""'}


# --- every value has an effect ---------------------------------------------------

# What has to be so for a value to matter.
_WITH: dict[tuple[str, ...], Object] = {
    ("server", "replicas"): {"server": {"autoscaling": {"kind": "none"}}},
    ("gateway", "replicas"): {"gateway": {"autoscaling": {"kind": "none"}}},
    ("server", "model", "pvc"): combine("pvc"),
    ("server", "model", "image"): combine("image"),
    ("server", "image", "tag"): {"server": {"image": {"digest": ""}}},
    ("gateway", "image", "tag"): {"gateway": {"image": {"digest": ""}}},
    ("gateway", "autoscaling"): combine("hpa"),
    ("server", "metrics", "enabled"): {"server": {"autoscaling": {"kind": "none"}}},
    ("nameOverride",): {"fullnameOverride": ""},
}
_CHOICES = {
    ("server", "model", "source"): "demo",
    ("server", "autoscaling", "kind"): "hpa",
    ("gateway", "autoscaling", "kind"): "none",
    ("server", "strategy", "type"): "Recreate",
    ("gateway", "strategy", "type"): "Recreate",
    ("server", "service", "type"): "NodePort",
    ("gateway", "service", "type"): "NodePort",
    ("server", "image", "digest"): "sha256:" + "1" * 64,
    ("gateway", "image", "digest"): "sha256:" + "1" * 64,
    ("server", "config", "log_format"): "text",
    ("gateway", "config", "log_format"): "text",
    ("server", "model", "mountPath"): "/elsewhere",
    ("server", "config", "host"): "127.0.0.1",
    ("serviceMonitor", "interval"): "7s",
    ("otlpEndpoint",): "http://elsewhere",
    ("gateway", "ingress", "tls"): [{"secretName": "changed"}],
    ("server", "autoscaling", "keda", "prometheus"): "http://elsewhere",
}


def changed(path: tuple[str, ...], value: Any) -> Any:
    if path in _CHOICES:
        return _CHOICES[path]
    if path[-1] == "pullPolicy":
        return "Always"
    if path[-1] in ("cpu", "memory", "sizeLimit", "shmSize", "tmpSize"):
        return "7Gi"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return "changed"
    if isinstance(value, list):
        return [{"name": "changed"}] if _items(path) == "object" else ["changed"]
    return {"changed": "yes"}


def _items(path: tuple[str, ...]) -> str:
    """The type of a list's items; strings in what is Kubernetes' own."""
    schema = SCHEMA
    for name in path:
        schema = schema.get("properties", {}).get(name, {})
    return str(schema.get("items", {}).get("type"))


def test_every_value_changes_something() -> None:
    base = combine(*EVERYTHING)

    def effect(path: tuple[str, ...], value: Any) -> bool:
        values = deepcopy(base)
        for prefix, more in _WITH.items():
            if path[: len(prefix)] == prefix:
                _merge(values, deepcopy(more))
        before = _everything(json.dumps(values))
        at = values
        for name in path[:-1]:
            at = at.setdefault(name, {})
        old = at.get(path[-1], value)
        at[path[-1]] = changed(path, old)
        assert at[path[-1]] != old, path
        return _everything(json.dumps(values)) != before

    found = list(leaves(VALUES))
    assert len(found) > 150
    with ThreadPoolExecutor(4) as pool:
        effects = list(pool.map(lambda leaf: effect(*leaf), found))
    idle = {
        ".".join(path) for (path, _), is_seen in zip(found, effects, strict=True) if not is_seen
    }
    assert idle == set()


@cache
def _everything(values: str) -> str:
    """values: JSON."""
    return run(["template", "vdiff-grpc", str(CHART)], json.loads(values))


def _merge(into: Object, more: Object) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
