"""Who may load what, checked in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["vdiff_grpc.v1", "vdiff_grpc.config", "vdiff_grpc.server.app"])
def test_importing_loads_neither_torch_nor_transformers_nor_telemetrys_sdk(module: str) -> None:
    check = f"import sys, {module}; print(*{{'torch', 'transformers', 'opentelemetry'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
