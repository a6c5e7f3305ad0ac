"""What must hold of everything the chart renders, in whatever combination of features."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from gateway.config import GatewayConfig, load_config
from tests.helm.chart import (
    CHART,
    NAMESPACE,
    VALUES_FILES,
    Object,
    combine,
    containers,
    environment,
    named,
    of_kind,
    pods,
    renders,
    template,
)
from vdiff_grpc import config, telemetry
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.server.health import SERVICES

READY = "vdiff.v1.GenerationService"
# Beyond delay and grace: the server gives its engine 5 s, the gateway its web server as much.
STOP_S = 5.0


def every() -> Iterator[tuple[str, list[Object]]]:
    yield from renders().items()


def told(component: str, spec: Object) -> Any:
    """The program's configuration, as it reads its container's environment and arguments."""
    container = spec["containers"][0]
    variables, arguments = environment(container), list(container.get("args", ()))
    if component == "gateway":
        return load_config(arguments, variables)
    assert arguments.pop(0) == "serve"
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.from_flags(parser.parse_args(arguments), variables)


def long_running() -> Iterator[tuple[str, str, Object, Any]]:
    """(render, component, pod, configuration) of servers and gateways."""
    for name, objects in every():
        for component, _, spec in pods(objects):
            if component != "test":
                yield name, component, spec, told(component, spec)


def lasts_s(probe: Object) -> float:
    return float(probe["periodSeconds"] * probe["failureThreshold"])


# --- life ------------------------------------------------------------------------


def test_a_pod_has_more_time_to_end_than_its_process_takes() -> None:
    for name, component, spec, options in long_running():
        needed = options.drain_delay_s + options.grace_s + STOP_S
        assert spec["terminationGracePeriodSeconds"] > needed, (name, component)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"drain_delay_s": 0.5, "grace_s": 0.2}, 16),
        ({"drain_delay_s": 20, "grace_s": 3600}, 3635),
        ({"drain_delay_s": None, "grace_s": None}, 45),
    ],
)
def test_the_time_to_end_follows_the_configuration(options: Object, seconds: int) -> None:
    for component in ("server", "gateway"):
        objects = template({component: {"config": options}})
        (spec,) = (spec for what, _, spec in pods(objects) if what == component)
        assert spec["terminationGracePeriodSeconds"] == seconds


@pytest.mark.parametrize("load_s", [0, 60, 7200, None])
@pytest.mark.parametrize("feature", ["no gateway", "tls"])
def test_the_start_up_probe_is_longer_than_the_load(load_s: int | None, feature: str) -> None:
    values = combine(feature)
    values.setdefault("server", {})["config"] = {"max_load_time_s": load_s}
    deployment = named(template(values), "Deployment", "-server")
    spec = deployment["spec"]["template"]["spec"]
    longest = told("server", spec).max_load_time_s or 3600.0
    probe = spec["containers"][0]["startupProbe"]
    assert lasts_s(probe) > longest
    spare = deployment["spec"]["progressDeadlineSeconds"] - deployment["spec"]["minReadySeconds"]
    assert spare > lasts_s(probe)


def test_draining_is_noticed_before_calls_are_refused() -> None:
    for name, component, spec, options in long_running():
        if name.startswith("dev"):
            continue  # one server, nobody to go to
        probe = spec["containers"][0]["readinessProbe"]
        if "exec" not in probe:
            assert options.drain_delay_s >= lasts_s(probe), (name, component)


def test_a_new_server_is_known_to_clients_before_an_old_one_goes() -> None:
    for files in ((), VALUES_FILES["production"], VALUES_FILES["replicas"]):
        deployment = named(template(files=files), "Deployment", "-server")
        age_s = told("server", deployment["spec"]["template"]["spec"]).max_connection_age_s
        # gRPC varies the age by a tenth, and looks names up every 30 s at most
        assert age_s > 0
        assert deployment["spec"]["minReadySeconds"] >= 1.1 * age_s + 30


# --- probes ----------------------------------------------------------------------


def test_probes_name_services_that_the_server_has() -> None:
    assert READY in SERVICES
    for name, objects in every():
        for component, _, spec in pods(objects):
            if component == "server":
                probes = spec["containers"][0]
                asked = {kind: _service(probes[f"{kind}Probe"]) for kind in _PROBES}
                assert asked == {"startup": READY, "readiness": READY, "liveness": ""}, name


_PROBES = ("startup", "readiness", "liveness")


def _service(probe: Object) -> str:
    if "grpc" in probe:
        return str(probe["grpc"]["service"])
    (flag,) = (one for one in probe["exec"]["command"] if one.startswith("--service="))
    return str(flag.removeprefix("--service="))


def test_probes_ask_the_port_that_is_served_and_speak_its_tls() -> None:
    for name, component, spec, options in long_running():
        for kind in _PROBES:
            probe = spec["containers"][0][f"{kind}Probe"]
            if component == "gateway":
                asked = probe["httpGet"]
                assert asked["path"] == ("/health/ready" if kind == "readiness" else "/health/live")
                assert (asked["port"], asked["scheme"] == "HTTPS") == (
                    "http",
                    bool(options.tls_cert),
                )
            elif options.tls_cert:
                command = probe["exec"]["command"]
                assert f"--address=127.0.0.1:{options.port}" in command, name
                assert bool(options.tls_client_ca) == any("--tls-key=" in one for one in command)
            else:
                assert probe["grpc"]["port"] == options.port, name


# --- ports and names -------------------------------------------------------------


def test_the_default_ports_are_the_programs_own() -> None:
    objects = template()
    assert told("server", _spec(objects, "server")).port == ServerConfig().port
    assert told("gateway", _spec(objects, "gateway")).port == GatewayConfig().port
    assert _ports(_spec(objects, "server")) == {"grpc": ServerConfig().port, "metrics": 9464}


def _spec(objects: list[Object], component: str) -> Object:
    (spec,) = (spec for what, _, spec in pods(objects) if what == component)
    return spec


def _ports(spec: Object) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in spec["containers"][0]["ports"]}


def test_containers_declare_the_ports_that_their_programs_listen_on() -> None:
    for name, component, spec, options in long_running():
        ports, variables = _ports(spec), environment(spec["containers"][0])
        assert ports["grpc" if component == "server" else "http"] == options.port, name
        assert options.host in ("0.0.0.0", "::"), name
        if component == "server":
            assert str(ports.get("metrics", 0)) == variables["VDIFF_METRICS_PORT"], name


def selects(selector: Object, labels: Object) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def test_every_selector_finds_the_pods_of_one_component() -> None:
    for name, objects in every():
        found = {what: metadata["labels"] for what, metadata, _ in pods(objects)}
        selectors = [(one, _selector(one)) for one in of_kind(objects, *_SELECTING)]
        for _, _, spec in pods(objects):
            for spread in spec.get("topologySpreadConstraints", ()):
                selectors += [(spread, labels) for labels in spread["labelSelector"].values()]
        for one, selector in selectors:
            hits = [what for what, labels in found.items() if selects(selector, labels)]
            component = one.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/component")
            assert hits == [component or selector["app.kubernetes.io/component"]], (name, one)


_SELECTING = ("Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy")


def _selector(one: Object) -> Object:
    spec = one["spec"]
    selector: Object = spec["podSelector" if one["kind"] == "NetworkPolicy" else "selector"]
    return selector if one["kind"] == "Service" else selector["matchLabels"]


def test_services_and_routes_lead_to_ports_that_exist() -> None:
    for name, objects in every():
        services = {one["metadata"]["name"]: one for one in of_kind(objects, "Service")}
        for service in services.values():
            ports = _ports(
                _spec(objects, service["metadata"]["labels"]["app.kubernetes.io/component"])
            )
            for port in service["spec"]["ports"]:
                assert port["targetPort"] in ports, (name, port)
        for route in of_kind(objects, "GRPCRoute"):
            for backend in route["spec"]["rules"][0]["backendRefs"]:
                assert backend["port"] in [
                    p["port"] for p in services[backend["name"]]["spec"]["ports"]
                ]
        for ingress in of_kind(objects, "Ingress"):
            for rule in ingress["spec"]["rules"]:
                backend = rule["http"]["paths"][0]["backend"]["service"]
                assert backend["port"]["name"] in [
                    port["name"] for port in services[backend["name"]]["spec"]["ports"]
                ]


def test_the_gateway_spreads_calls_over_the_headless_service() -> None:
    for name, objects in every():
        headless = named(objects, "Service", "-headless")
        assert headless["spec"]["clusterIP"] == "None"
        service = headless["metadata"]["name"]
        port = headless["spec"]["ports"][0]["port"]
        for component, _, spec in pods(objects):
            if component == "gateway":
                options = told("gateway", spec)
                assert options.server == f"dns:///{service}.{NAMESPACE}.svc.cluster.local:{port}", (
                    name
                )


def test_a_service_monitor_scrapes_every_pod_once() -> None:
    for name, objects in every():
        services = of_kind(objects, "Service")
        for monitor in of_kind(objects, "ServiceMonitor"):
            (endpoint,) = monitor["spec"]["endpoints"]
            hits = [
                service
                for service in services
                if selects(
                    monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]
                )
                and endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
            ]
            assert len(hits) == 1, name
            if endpoint["port"] == "http":
                has_tls = told("gateway", _spec(objects, "gateway")).tls_cert != ""
                assert (endpoint.get("scheme") == "https") == has_tls, name


def test_autoscalers_have_a_target_that_sets_no_number_itself() -> None:
    for name, objects in every():
        scaled = set()
        for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
            target = one["spec"]["scaleTargetRef"]
            assert target.get("kind", "Deployment") == "Deployment"
            scaled.add(target["name"])
        for deployment in of_kind(objects, "Deployment"):
            is_scaled = deployment["metadata"]["name"] in scaled
            assert ("replicas" in deployment["spec"]) != is_scaled, name


def test_keda_asks_for_this_releases_rows() -> None:
    objects = template(combine("keda", "monitor"))
    (scaler,) = of_kind(objects, "ScaledObject")
    service = named(objects, "Service", "-headless")["metadata"]["name"]
    labels = f'{{namespace="{NAMESPACE}",service="{service}"}}'
    queries = [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
    assert queries == [f"sum({metric}{labels})" for metric in _metrics()]
    # the label `service` comes from the Service that the ServiceMonitor selects
    (monitor,) = (
        m for m in of_kind(objects, "ServiceMonitor") if "server" in m["metadata"]["name"]
    )
    assert monitor["spec"]["endpoints"][0]["port"] == "metrics"
    (hpa,) = of_kind(
        template({"server": {"autoscaling": {"kind": "hpa"}}}), "HorizontalPodAutoscaler"
    )
    assert [one["pods"]["metric"]["name"] for one in hpa["spec"]["metrics"]] == _metrics()


def _metrics() -> list[str]:
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    return re.findall(r'define "vdiff\.metric\.\w+" -\}\}(\w+)\{\{', helpers)


def test_the_metrics_that_scale_exist() -> None:
    instruments = [value for value in vars(telemetry).values() if hasattr(value, "family")]
    assert {one.family for one in instruments} >= set(_metrics())


# --- security --------------------------------------------------------------------


def test_every_container_is_confined_and_says_what_it_needs() -> None:
    for name, objects in every():
        for _, _, spec in pods(objects):
            pod = spec["securityContext"]
            assert pod["runAsNonRoot"] is True
            assert pod["runAsUser"] > 0
            assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            # else VDIFF_GATEWAY_PORT may be tcp://..., from a Service's name
            assert spec["enableServiceLinks"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            for container in containers(spec):
                own = container["securityContext"]
                assert own["readOnlyRootFilesystem"] is True, name
                assert own["allowPrivilegeEscalation"] is False
                assert own["capabilities"] == {"drop": ["ALL"]}
                assert not own.get("privileged")
                assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
                mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
                volumes = {one["name"]: one for one in spec["volumes"]}
                assert "emptyDir" in volumes[mounts["/tmp"]], name
        for account in of_kind(objects, "ServiceAccount"):
            assert account["automountServiceAccountToken"] is False


def test_the_images_user_is_the_charts() -> None:
    dockerfile = (CHART.parents[1] / "Dockerfile").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    users = set(re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.M))
    for component in ("server", "gateway"):
        context = values[component]["podSecurityContext"]
        assert {(str(context["runAsUser"]), str(context["runAsGroup"]))} == users


def test_every_volume_is_mounted_and_every_file_is_in_one() -> None:
    for name, objects in every():
        for component, _, spec in pods(objects):
            volumes = {one["name"]: one for one in spec["volumes"]}
            used = set()
            for container in containers(spec):
                mounts = {
                    one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]
                }
                used |= {one["name"] for one in container["volumeMounts"]}
                for path in _files(container):
                    folder, _, file = path.rpartition("/")
                    secret = mounts[folder]["secret"]
                    keys = [item["key"] for item in secret.get("items", ())]
                    assert not keys or file in keys, (name, path)
            assert used == set(volumes), (name, component)


def _files(container: Object) -> list[str]:
    """Paths below /etc/vdiff in a container's variables, commands and probes."""
    return re.findall(
        r"/etc/vdiff/[\w./-]+", repr({k: v for k, v in container.items() if k != "volumeMounts"})
    )


def test_a_gateway_never_holds_the_servers_private_key() -> None:
    objects = template(combine("mtls"))
    for component, _, spec in pods(objects):
        for volume in spec["volumes"]:
            if volume.get("secret", {}).get("secretName") == "server-tls" and component != "server":
                assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt"]


def test_weights_are_read_only() -> None:
    for feature in ("pvc", "image", "init", "mounted"):
        spec = _spec(template(combine(feature)), "server")
        options = told("server", spec)
        mounts = [
            one
            for one in spec["containers"][0]["volumeMounts"]
            if options.model == one["mountPath"] or options.model.startswith(one["mountPath"] + "/")
        ]
        assert [one["readOnly"] for one in mounts] == [True], feature
    spec = _spec(template(combine("init")), "server")
    assert not [m for m in spec["initContainers"][0]["volumeMounts"] if m.get("readOnly")]


# --- network policies ------------------------------------------------------------


def allows(rules: list[Object], direction: str, port: str | int, peer: Object | None) -> bool:
    """Whether one of the rules lets a pod with these labels through; None: one from elsewhere."""
    for rule in rules:
        if port not in [one["port"] for one in rule.get("ports", ())]:
            continue
        if direction not in rule:
            return True
        for one in rule[direction]:
            if one.get("namespaceSelector") == {} and "podSelector" not in one:
                return True
            labels = one.get("podSelector", {}).get("matchLabels")
            if peer is not None and labels and selects(labels, peer):
                return True
    return False


def test_policies_let_through_what_belongs_together_and_nobody_else() -> None:
    objects = template(combine("policy", "monitor"))
    labels = {what: metadata["labels"] for what, metadata, _ in pods(objects)}
    server = named(objects, "NetworkPolicy", "-server")["spec"]
    gateway = named(objects, "NetworkPolicy", "-gateway")["spec"]
    for caller in ("gateway", "test"):
        assert allows(server["ingress"], "from", "grpc", labels[caller])
    assert not allows(server["ingress"], "from", "grpc", {"app": "stranger"})
    assert not allows(server["ingress"], "from", "grpc", None)
    assert allows(server["ingress"], "from", "metrics", None)
    assert allows(gateway["ingress"], "from", "http", None)
    assert allows(gateway["egress"], "to", "grpc", labels["server"])
    assert not allows(gateway["egress"], "to", "grpc", labels["test"])
    for policy in (server, gateway):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert allows(policy["egress"], "to", 53, None)
        assert not allows(policy["egress"], "to", 443, None)
    for monitor in of_kind(objects, "ServiceMonitor"):
        policy = gateway if "gateway" in monitor["metadata"]["name"] else server
        assert allows(policy["ingress"], "from", monitor["spec"]["endpoints"][0]["port"], None)


def test_narrow_policies_still_let_scrapes_through() -> None:
    objects = template(combine("narrow policy"))
    for name, port in (("-server", "metrics"), ("-gateway", "http")):
        policy = named(objects, "NetworkPolicy", name)["spec"]
        assert allows(policy["ingress"], "from", port, {"app": "prometheus"})
        assert not allows(policy["ingress"], "from", port, {"app": "stranger"})
        assert {"ports": [{"port": 4317}]} in policy["egress"]
