"""Tools that tests bring themselves: out of the registries, kept in .cache/, which git ignores.

Nothing is installed into the system. What cannot be fetched fails the test that wants it, in words.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent / ".cache"
_FETCH_S = 100


class ToolError(Exception):
    """A tool cannot be had; says which and why."""


def kept(name: str, fetch: Callable[[Path], None]) -> Path:
    """A folder that `fetch` has filled, this time or another."""
    folder = KEPT / name
    with alone(name):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=KEPT) as temporary:
                new = Path(temporary) / name
                new.mkdir()
                fetch(new)
                # In one step: a half-made folder is never taken for a whole one.
                new.replace(folder)
    return folder


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Tests run in several processes: one at a time brings this."""
    KEPT.mkdir(exist_ok=True)
    with (KEPT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(folder: Path, *command: str | Path) -> None:
    """Raises ToolError."""
    said = " ".join(map(str, command))
    try:
        ended = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"not done within {_FETCH_S} s: {said}") from None
    if ended.returncode:
        raise ToolError(f"cannot be fetched: {said}\n{ended.stderr[-2000:]}")


def ours(name: str) -> str:
    """A program that the `dev` extra brings, such as node, npm and envoy."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ToolError(f"{name} is not in {path.parent}: run `make install`")
    return str(path)


def debian(folder: Path, *packages: str) -> None:
    """Debian's packages, unpacked into the folder. Where the lists are missing, root gets them."""
    if shutil.which("apt-get") is None:
        raise ToolError(
            f"{', '.join(packages)}: come from Debian's packages, and there is no apt-get"
        )
    try:
        run(folder, "apt-get", "download", "-q", *packages)
    except ToolError:
        run(folder, "apt-get", "update", "-q")
        run(folder, "apt-get", "download", "-q", *packages)
    for package in folder.glob("*.deb"):
        run(folder, "dpkg", "-x", package, folder)
        package.unlink()
