"""Writes the chart's values.schema.json: our own values by hand, the options from the two configs.

`python helm/make_schema.py` after a change of vdiff_grpc/config.py or gateway/config.py. Objects of
ours refuse unknown keys; what is Kubernetes' own is left to its API server.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from gateway.config import GatewayConfig
from vdiff_grpc.config import ServerConfig

PATH = Path(__file__).parent / "vdiff-grpc" / "values.schema.json"

Schema = dict[str, Any]

_TYPES = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    tuple: "array",
}


def schema() -> Schema:
    """The whole file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vdiff-grpc",
        **_object(
            nameOverride=_TEXT,
            fullnameOverride=_TEXT,
            commonLabels=_LABELS,
            imagePullSecrets=_list(_object(name=_NAME)),
            clusterDomain=_NAME,
            serviceAccount=_object(create=_SWITCH, name=_TEXT, annotations=_LABELS),
            otlpEndpoint={"type": "string", "pattern": "^(https?://.+)?$"},
            server=_server(),
            gateway=_gateway(),
            serviceMonitor=_object(enabled=_SWITCH, labels=_LABELS, interval=_DURATION),
            networkPolicy=_object(
                enabled=_SWITCH,
                serverFrom=_KUBERNETES_LIST,
                gatewayFrom=_KUBERNETES_LIST,
                metricsFrom=_KUBERNETES_LIST,
                extraEgress=_KUBERNETES_LIST,
            ),
            test=_object(apiKey=_SECRET_KEY, prompt=_NAME, resources=_RESOURCES),
            # Helm hands these to every chart that is another's dependency.
            **{"global": {"type": "object"}},
        ),
    }


def server_options() -> Schema:
    """`server.config`: what flags and environment take, as ServerConfig's rules have it."""
    options = {}
    for option in fields(ServerConfig):
        rule = option.metadata["rule"]
        kind = type(option.default)
        found: Schema = {"description": rule.help, "type": _TYPES[kind]}
        if kind in (int, float):
            found["minimum"] = rule.minimum
            if rule.maximum != math.inf:
                found["maximum"] = rule.maximum
        elif kind is str:
            found["pattern"] = f"^({rule.pattern})?$"
        elif kind is tuple:
            found["items"] = {"type": "string", "pattern": r"^[^\s,]+$"}
        options[option.name] = found
    return _config(options)


def gateway_options() -> Schema:
    """`gateway.config`; ranges are checked by the gateway itself."""
    types = get_type_hints(GatewayConfig)
    options: dict[str, Schema] = {}
    for setting in fields(GatewayConfig):
        found: Schema = {
            "description": setting.metadata["help"],
            "type": _TYPES[types[setting.name]],
        }
        if choices := setting.metadata["choices"]:
            found["enum"] = list(choices)
            if choices == ("on", "off"):  # an unquoted on or off is a boolean in YAML
                found = {"description": found["description"], "enum": ["on", "off", True, False]}
        elif found["type"] in ("integer", "number"):
            found["minimum"] = 0
        options[setting.name] = found
    return _config(options)


def _config(options: dict[str, Schema]) -> Schema:
    # Probes and Services name the port, so it cannot be any free one.
    options["port"] |= {"minimum": 1, "maximum": 65535}
    return {**_object(**options), "required": ["host", "port"]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _whole(minimum: int, maximum: int | None = None) -> Schema:
    limit = {} if maximum is None else {"maximum": maximum}
    return {"type": "integer", "minimum": minimum, **limit}


_SWITCH: Schema = {"type": "boolean"}
_TEXT: Schema = {"type": "string"}
_NAME: Schema = {"type": "string", "minLength": 1}
_TEXTS = _list(_TEXT)
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_QUANTITY: Schema = {
    "type": ["string", "integer"],
    "pattern": "^[0-9]+([.][0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?$",
}
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
# Kubernetes' own objects, whose shape its API server checks.
_KUBERNETES: Schema = {"type": "object"}
_KUBERNETES_LIST = _list(_KUBERNETES)
_AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"]},
}
_RESOURCES = _object(
    requests={**_AMOUNTS, "required": ["cpu", "memory"]}, limits=_AMOUNTS, claims=_KUBERNETES_LIST
) | {"required": ["requests"]}
_SECRET_KEY = _object(secretName=_TEXT, key=_NAME)
_PULL_POLICY: Schema = {"enum": ["Always", "IfNotPresent", "Never"]}
_SERVICE_TYPE: Schema = {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}
_PORT = _whole(1, 65535)
_AMOUNT_OR_PERCENT: Schema = {
    "type": ["integer", "string"],
    "minimum": 0,
    "pattern": "^[0-9]+%$",
}


def _component() -> dict[str, Schema]:
    """What server and gateway have alike."""
    return {
        "replicas": _whole(0),
        "image": _object(
            repository=_NAME,
            tag=_TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy=_PULL_POLICY,
        ),
        "minReadySeconds": _whole(0),
        "apiKeys": _SECRET_KEY,
        "podDisruptionBudget": _object(enabled=_SWITCH, maxUnavailable=_AMOUNT_OR_PERCENT),
        "strategy": _object(
            type={"enum": ["RollingUpdate", "Recreate"]},
            rollingUpdate=_object(maxSurge=_AMOUNT_OR_PERCENT, maxUnavailable=_AMOUNT_OR_PERCENT),
        ),
        "resources": _RESOURCES,
        "tmpSize": _QUANTITY,
        "nodeSelector": _LABELS,
        "tolerations": _KUBERNETES_LIST,
        "affinity": _KUBERNETES,
        "topologySpreadConstraints": _KUBERNETES_LIST,
        "runtimeClassName": _TEXT,
        "priorityClassName": _TEXT,
        "podAnnotations": _LABELS,
        "podLabels": _LABELS,
        "podSecurityContext": _KUBERNETES,
        "securityContext": _KUBERNETES,
        "extraArgs": _TEXTS,
        "extraEnv": _KUBERNETES_LIST,
        "extraEnvFrom": _KUBERNETES_LIST,
        "extraVolumes": _KUBERNETES_LIST,
        "extraVolumeMounts": _KUBERNETES_LIST,
    }


def _server() -> Schema:
    return _object(
        **_component(),
        config=server_options(),
        model=_object(
            source={"enum": ["demo", "pvc", "image", "init", "mounted"]},
            mountPath={"type": "string", "pattern": "^/[^/]"},
            path={"type": "string", "pattern": "^([^/].*)?$"},
            pvc=_object(claimName=_TEXT, subPath=_TEXT),
            image=_object(reference=_TEXT, pullPolicy=_PULL_POLICY),
            init=_object(
                image=_TEXT,
                command=_TEXTS,
                args=_TEXTS,
                env=_KUBERNETES_LIST,
                envFrom=_KUBERNETES_LIST,
                resources=_RESOURCES,
                sizeLimit=_QUANTITY,
            ),
        ),
        tls=_object(
            secretName=_TEXT, serverName=_TEXT, clientCaSecretName=_TEXT, clientSecretName=_TEXT
        ),
        metrics=_object(enabled=_SWITCH, port=_PORT),
        service=_object(type=_SERVICE_TYPE, annotations=_LABELS),
        grpcRoute=_object(
            enabled=_SWITCH, parentRefs=_KUBERNETES_LIST, hostnames=_TEXTS, annotations=_LABELS
        ),
        autoscaling=_object(
            kind={"enum": ["none", "keda", "hpa"]},
            minReplicas=_whole(1),
            maxReplicas=_whole(1),
            rowsWaiting=_whole(1),
            rowsRunning=_whole(1),
            scaleDownStabilizationSeconds=_whole(0, 3600),
            keda=_object(
                prometheus={"type": "string", "pattern": "^https?://"},
                pollingInterval=_whole(1),
                selector=_TEXT,
                authenticationRef=_TEXT,
            ),
        ),
        shmSize=_QUANTITY,
    )


def _gateway() -> Schema:
    return _object(
        enabled=_SWITCH,
        **_component(),
        config=gateway_options(),
        upstreamApiKey=_SECRET_KEY,
        tls=_object(secretName=_TEXT),
        service=_object(type=_SERVICE_TYPE, port=_PORT, annotations=_LABELS),
        ingress=_object(
            enabled=_SWITCH,
            className=_TEXT,
            annotations=_LABELS,
            hosts=_list(_NAME),
            tls=_list(_object(secretName=_TEXT, hosts=_list(_NAME))),
        ),
        autoscaling=_object(
            kind={"enum": ["none", "hpa"]},
            minReplicas=_whole(1),
            maxReplicas=_whole(1),
            cpuPercent=_whole(1, 1000),
        ),
    )


def text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
