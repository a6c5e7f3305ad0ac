"""Which family a checkpoint belongs to, and what its config files say. Loads no torch.

To add a family: one file beside this one with a `FAMILY`, and a row in `FAMILIES`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vdiff_grpc.engine.models.family import Family
from vdiff_grpc.engine.models.llada import FAMILY as LLADA
from vdiff_grpc.engine.types import ModelInfo
from vdiff_grpc.errors import CheckpointError

FAMILIES: tuple[Family, ...] = (LLADA,)

_SAMPLE_BYTES = 1 << 20


def find_family(config: dict[str, Any], where: str) -> Family:
    """The family that a config.json names by model_type or architectures.

    Raises CheckpointError with what was found and what is supported.
    """
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if model_type in family.model_types or set(architectures) & set(family.architectures):
            return family
    supported = ", ".join(t for family in FAMILIES for t in family.model_types)
    raise CheckpointError(
        f"{where}: model_type {model_type!r}, architectures {architectures!r} is no model that "
        f"can be served here; supported model types: {supported}"
    )


def describe(path: str, name: str = "") -> ModelInfo:
    """Reads a checkpoint's config files, not its weights.

    name: the id under which it is served; the folder's name when empty.
    Raises CheckpointError naming the file and what was expected.
    """
    root = Path(path)
    if not root.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; expected a checkpoint in Hugging Face layout"
        )
    config = read_json(root / "config.json")
    family = find_family(config, str(root / "config.json"))
    generation = _read_optional(root / "generation_config.json")
    try:
        return ModelInfo(
            name=name or root.resolve().name,
            path=str(root),
            family=family.name,
            revision=fingerprint(root),
            attention=family.attention,
            vocab_size=family.vocab_size(config),
            max_positions=family.max_positions(config),
            mask_token_id=family.mask_token_id(config),
            end_token_ids=_end_token_ids(config, generation, family, root),
            supports_infill=family.supports_infill,
            strategies=family.strategies,
            default_temperature=float(generation.get("temperature") or 0.0),
            suppressed_ids=tuple(int(i) for i in generation.get("suppress_tokens") or ()),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{root / 'config.json'}: the key {error.args[0]!r}, which the {family.name} family "
            "needs, is missing"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def fingerprint(root: Path) -> str:
    """Twelve hex digits that change with the checkpoint.

    Over every JSON file, and of every weight file its size, first and last MiB: hashing
    all of a 16 GB checkpoint would cost as much as loading it.
    """
    digest = hashlib.sha256()
    for file in sorted([*root.glob("*.json"), *root.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if file.suffix == ".json":
                digest.update(stream.read())
                continue
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(size - _SAMPLE_BYTES, 0))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _end_token_ids(
    config: dict[str, Any], generation: dict[str, Any], family: Family, root: Path
) -> tuple[int, ...]:
    """End ids of generation config and config, and the tokens that the family ends turns with."""
    found: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        found += value if isinstance(value, list) else [value] if value is not None else []
    if family.end_token_names and (root / "tokenizer.json").exists():
        added = read_json(root / "tokenizer.json").get("added_tokens", [])
        found += [t["id"] for t in added if t.get("content") in family.end_token_names]
    return tuple(dict.fromkeys(int(i) for i in found))
