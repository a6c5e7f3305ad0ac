"""Writes the stubs of proto/vdiff/v1 into vdiff_grpc/v1. Used by setup.py and the Makefile."""

import shutil
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate_stubs() -> None:
    """Runs protoc. The mapping of directories makes imports that need no patching."""
    from grpc_tools import protoc

    out = ROOT / "vdiff_grpc" / "v1"
    out.mkdir(parents=True, exist_ok=True)
    # types of the gRPC stubs: protoc's own --pyi_out covers messages only
    beside = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    plugin = beside if beside.exists() else shutil.which("protoc-gen-mypy_grpc")
    arguments = [
        "protoc",
        f"-Ivdiff_grpc/v1={ROOT / 'proto' / 'vdiff' / 'v1'}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        f"--python_out={ROOT}",
        f"--pyi_out={ROOT}",
        f"--grpc_python_out={ROOT}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}",
        f"--mypy_grpc_out={ROOT}",
        "vdiff_grpc/v1/generation.proto",
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed on proto/vdiff/v1/generation.proto")


if __name__ == "__main__":
    generate_stubs()
