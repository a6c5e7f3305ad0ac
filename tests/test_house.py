"""Imports point down only: read from our own import statements, nothing is imported."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What a part may import of the house, besides itself. A longer prefix wins.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "vdiff_grpc": (),
    "vdiff_grpc.v1": (),
    "vdiff_grpc.vllm": (),
    "vdiff_grpc.errors": (),
    "vdiff_grpc.config": ("vdiff_grpc.engine.types",),
    "vdiff_grpc.keys": ("vdiff_grpc.errors",),
    "vdiff_grpc.channels": (),
    "vdiff_grpc.sliding_window": (),
    "vdiff_grpc.telemetry": (),
    "vdiff_grpc.meters": ("vdiff_grpc.telemetry",),
    "vdiff_grpc.tracing": ("vdiff_grpc.errors", "vdiff_grpc.meters", "vdiff_grpc.otlp"),
    "vdiff_grpc.otlp": ("vdiff_grpc.meters", "vdiff_grpc.telemetry", "vdiff_grpc.tracing"),
    "vdiff_grpc.client": ("vdiff_grpc.channels", "vdiff_grpc.errors", "vdiff_grpc.v1"),
    "vdiff_grpc.cli": ("gateway.app", "gateway.config", "vdiff_grpc.client", "vdiff_grpc.config", "vdiff_grpc.errors", "vdiff_grpc.keys", "vdiff_grpc.server.app", "vdiff_grpc.v1"),
    "vdiff_grpc.__main__": ("vdiff_grpc.cli",),
    "vdiff_grpc.server": ("vdiff_grpc.config", "vdiff_grpc.engine", "vdiff_grpc.errors", "vdiff_grpc.keys", "vdiff_grpc.meters", "vdiff_grpc.sliding_window", "vdiff_grpc.telemetry", "vdiff_grpc.tracing", "vdiff_grpc.v1", "vdiff_grpc.vllm"),
    "vdiff_grpc.engine": ("vdiff_grpc.errors",),
    # No server, no engine: what the bare package has.
    "gateway": ("vdiff_grpc.channels", "vdiff_grpc.keys", "vdiff_grpc.meters", "vdiff_grpc.sliding_window", "vdiff_grpc.telemetry", "vdiff_grpc.tracing", "vdiff_grpc.v1"),
}  # fmt: skip

# Files that alone may import something.
ONLY: dict[str, tuple[str, ...]] = {
    "torch": ("vdiff_grpc.engine",),
    "transformers": ("vdiff_grpc.engine",),
    "opentelemetry": ("vdiff_grpc.otlp",),
    "grpc": ("vdiff_grpc.server", "vdiff_grpc.client", "vdiff_grpc.cli", "vdiff_grpc.v1", "gateway"),
    "asyncio": ("vdiff_grpc.server", "vdiff_grpc.client", "vdiff_grpc.cli", "gateway"),
}  # fmt: skip

# Inside the engine: a file's rank; it imports what has a lower one, or stands in its own folder.
ENGINE_ORDER = (
    ("strategies", "exact", "caches", "kernels", "constraints"),
    ("prompt_types",),
    ("types", "events", "attention"),
    ("chat",),
    ("rng", "tokenizer", "messages", "columns", "pulse", "pace", "step_times"),
    ("text", "models", "prompts", "blocks", "lengths"),
    ("tool_checks",),
    (
        "strategy_checks",
        "cache_checks",
        "stop_checks",
        "answer_checks",
        "constraint_checks",
        "layout_checks",
        "sequence",
        "parallel",
    ),
    ("waiting", "turns", "likelihood", "growth_checks"),
    ("validation", "decoding", "packing", "reservations", "told", "faults"),
    ("scheduler", "opened"),
    ("auxiliary", "constrained", "growing"),
    ("runner",),
    ("assembly", "hurry"),
    ("engine",),
    ("worker",),
)


def files() -> dict[str, Path]:
    found = {}
    for package in ("vdiff_grpc", "gateway"):
        for path in (ROOT / package).rglob("*.py"):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


FILES = files()


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def under(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_file_imports_only_what_lies_below_it(module: str) -> None:
    part = max((p for p in MAY_IMPORT if under(module, (p,))), key=len)
    for name in imports(FILES[module]):
        if under(name, ("vdiff_grpc", "gateway")):
            allowed = (part, *MAY_IMPORT[part])
            if part == "vdiff_grpc":
                allowed = MAY_IMPORT[part]
            assert under(name, allowed), f"{module} imports {name}"
        for what, owners in ONLY.items():
            if under(name, (what,)):
                assert under(module, owners), f"{module} imports {what}"


def test_the_engines_own_files_point_down() -> None:
    ranks = {name: rank for rank, names in enumerate(ENGINE_ORDER) for name in names}
    prefix = "vdiff_grpc.engine."
    for module, path in FILES.items():
        if not module.startswith(prefix):
            continue
        mine = module.removeprefix(prefix).partition(".")[0]
        for name in imports(path):
            if name.startswith(prefix):
                other = name.removeprefix(prefix).partition(".")[0]
                assert other == mine or ranks[other] < ranks[mine], f"{module} imports {name}"


def test_what_runs_has_a_lowest_and_a_highest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = ("server", "parallel", "quantization", "gateway", "telemetry")
    for wanted in project["dependencies"] + [text for name in named for text in extras[name]]:
        assert re.search(r">=[\d.]+,<\d", wanted), wanted


def test_no_file_is_longer_than_it_should_be() -> None:
    long = {m: n for m, p in FILES.items() if (n := len(p.read_text().splitlines())) > 400}
    assert not long
