"""What the documents tell the reader to type, and a way to run it against a live server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a command may read of the repository; it writes beside them, not into them.
_LINKED = (".venv", "benchmarks", "gateway", "proto", "training", "vdiff_grpc")
_BUILT = shutil.ignore_patterns("node_modules", "gen", "out", "v1", "go.*")

GRPC = "127.0.0.1:50051"
HTTP = "127.0.0.1:8000"


@dataclass(frozen=True)
class Block:
    """A fenced block. commands: of a shell's, each on one line and without its comment."""

    page: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        joined = self.text.replace("\\\n", " ").splitlines()
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined)
        return [re.sub(r"\s+", " ", line) for line in lines if line]

    def __str__(self) -> str:
        return f"{self.page}:{self.text.splitlines()[0][:40]}"


def blocks(language: str) -> list[Block]:
    return [
        Block(str(page.relative_to(ROOT)), language, textwrap.dedent(text))
        for page in PAGES
        for text in re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.M | re.S)
    ]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def checkout(folder: Path) -> Path:
    """A folder that looks like the repository to the commands of the documents."""
    for name in _LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=_BUILT)
    return folder


def run(
    lines: Iterable[str],
    folder: Path,
    addresses: dict[str, str],
    environment: dict[str, str] | None = None,
) -> str:
    """What the lines print, in a checkout; the documents' addresses replaced by these."""
    script = "\n".join(lines)
    for told, real in addresses.items():
        script = script.replace(told, real)
    told_path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": told_path, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, f"{script}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout
