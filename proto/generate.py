"""Writes the stubs of proto/ into vdiff_grpc/. Used by setup.py and the Makefile."""

import shutil
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# package: the folder of its contract
CONTRACTS = {"vdiff_grpc/v1": "vdiff/v1", "vdiff_grpc/vllm": "vllm/grpc/engine"}


def generate_stubs() -> None:
    """Runs protoc. The mapping of directories makes imports that need no patching."""
    from grpc_tools import protoc

    # types of the gRPC stubs: protoc's own --pyi_out covers messages only
    beside = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    plugin = beside if beside.exists() else shutil.which("protoc-gen-mypy_grpc")
    for package, folder in CONTRACTS.items():
        source = ROOT / "proto" / folder
        arguments = [
            "protoc",
            f"-I{package}={source}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            f"--mypy_grpc_out={ROOT}",
            *(f"{package}/{file.name}" for file in source.glob("*.proto")),
        ]
        if protoc.main(arguments) != 0:
            sys.exit(f"protoc failed on proto/{folder}")


if __name__ == "__main__":
    generate_stubs()
