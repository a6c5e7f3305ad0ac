"""The chart renders, in every way, what Kubernetes and the custom resources' owners define."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from copy import deepcopy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from tests.fetched import ours
from tests.helm import tools
from tests.helm.chart import (
    CHART,
    FEATURES,
    NEWEST,
    OLDEST,
    RELEASE,
    VALUES_FILES,
    ChartError,
    Object,
    combine,
    containers,
    of_kind,
    pods,
    renders,
    run,
    template,
)

CUSTOM = {
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
    "ServiceMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
    "GRPCRoute": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/GRPCRoute",
}
# A file of a megabyte, read anew for every object.
utils.schema_contents = functools.cache(utils.schema_contents)


def distinct(objects: list[Object]) -> list[Object]:
    return list({json.dumps(one, sort_keys=True): one for one in objects}.values())


@pytest.fixture(scope="session")
def all_objects() -> list[Object]:
    return distinct([one for objects in renders().values() for one in objects])


def type_errors(objects: list[Object], folder: Path) -> list[str]:
    """What TypeScript's compiler says to the objects as literals of their published types."""
    lines = [
        f'import type {{ I{kind} }} from "{module}/{kind}";'.replace(f"/{kind}/{kind}", f"/{kind}")
        for kind, module in CUSTOM.items()
    ]
    for number, one in enumerate(objects):
        lines.append(f"export const o{number}: I{one['kind']} = {json.dumps(one)};")
    (folder / "objects.mts").write_text("\n".join(lines))
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(tools.crd_types() / "node_modules")
    compiler = modules / "typescript" / "bin" / "tsc"
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
    ended = subprocess.run(
        [ours("node"), str(compiler), *flags, "objects.mts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ended.stdout.splitlines()


@pytest.mark.parametrize("files", [(), *VALUES_FILES.values()], ids=["defaults", *VALUES_FILES])
def test_the_chart_passes_the_strict_linter(files: tuple[str, ...]) -> None:
    assert "0 chart(s) failed" in run(["lint", "--strict", str(CHART)], files=files)


def test_every_object_is_valid_for_the_newest_kubernetes(all_objects: list[Object]) -> None:
    assert utils.major_minor(utils.latest_version()) == NEWEST
    kinds = {one["kind"] for one in all_objects}
    for one in all_objects:
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, NEWEST, strict=True)
    assert kinds >= {*CUSTOM, "NetworkPolicy", "PodDisruptionBudget", "Ingress", "Pod"}


def test_every_object_is_valid_for_the_oldest_kubernetes() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
    rendered = [template(files=files, kubernetes=OLDEST) for files in VALUES_FILES.values()]
    rendered += [template(combine(name), kubernetes=OLDEST) for name in FEATURES if name != "image"]
    for one in distinct([one for objects in rendered for one in objects]):
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, OLDEST, strict=True)


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(ChartError, match=r"incompatible with Kubernetes v1\.26"):
        template(kubernetes="1.26")
    with pytest.raises(ChartError, match=r"image needs Kubernetes 1\.31"):
        template(combine("image"), kubernetes="1.30")
    template(combine("image"), kubernetes="1.31")


def test_custom_resources_have_their_published_shape(
    all_objects: list[Object], tmp_path: Path
) -> None:
    custom = of_kind(all_objects, *CUSTOM)
    assert {one["kind"] for one in custom} == set(CUSTOM)
    assert type_errors(custom, tmp_path) == []
    wrong = []
    for kind in CUSTOM:
        one = deepcopy(of_kind(custom, kind)[0])
        one["spec"]["nonsense"] = 1
        wrong.append(one)
    # the check itself sees what is wrong
    assert len([line for line in type_errors(wrong, tmp_path) if "nonsense" in line]) == len(CUSTOM)


def test_the_schemas_refuse_an_unknown_field(all_objects: list[Object]) -> None:
    deployment = deepcopy(of_kind(all_objects, "Deployment")[0])
    deployment["spec"]["template"]["spec"]["containers"][0]["nonsense"] = 1
    for version in (OLDEST, NEWEST):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, version, strict=True)


def test_no_two_objects_have_one_name_and_every_name_is_short_enough() -> None:
    for release in (RELEASE, "a" * 53, "prod"):
        objects = template(combine("keda", "monitor", "policy", "routes"), release=release)
        names = [(one["kind"], one["metadata"]["name"]) for one in objects]
        assert len(set(names)) == len(names)
        for _, name in names:
            assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name), name


def test_long_release_names_do_not_collide_within_the_release() -> None:
    objects = template(release="a" * 53)
    assert {one["metadata"]["name"][46:] for one in of_kind(objects, "Service")} == {
        "-server",
        "-server-headless",
        "-gateway",
    }


def test_common_labels_are_on_every_object() -> None:
    objects = template(
        {**combine("keda", "monitor", "policy", "routes"), "commonLabels": {"team": "x"}}
    )
    for one in objects:
        assert one["metadata"]["labels"]["team"] == "x", one["metadata"]["name"]


def test_all_containers_come_from_the_two_images_and_the_fetcher() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    for name, objects in renders().items():
        for component, _, spec in pods(objects):
            for container in containers(spec):
                image = container["image"].rpartition("/")[2]
                if container["name"] == "model":
                    assert image == "fetch:1"
                    continue
                part = "gateway" if component == "gateway" else "server"
                at = (
                    "@sha256:" + "0" * 64
                    if "placing" in name or name == "everything"
                    else f":{version}"
                )
                assert image == f"vdiff-grpc-{part}{at}", name
