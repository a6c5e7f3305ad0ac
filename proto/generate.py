"""Writes the stubs of proto/vdiff/v1 into vdiff_grpc/v1. Used by setup.py and the Makefile."""

import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate_stubs() -> None:
    """Runs protoc. The mapping of directories makes imports that need no patching."""
    from grpc_tools import protoc

    out = ROOT / "vdiff_grpc" / "v1"
    out.mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"-Ivdiff_grpc/v1={ROOT / 'proto' / 'vdiff' / 'v1'}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        f"--python_out={ROOT}",
        f"--pyi_out={ROOT}",
        f"--grpc_python_out={ROOT}",
        "vdiff_grpc/v1/generation.proto",
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed on proto/vdiff/v1/generation.proto")


if __name__ == "__main__":
    generate_stubs()
