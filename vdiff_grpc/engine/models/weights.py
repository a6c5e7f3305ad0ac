"""A checkpoint's weight files, read through once before they are loaded.

What is broken is told with the file and the key. The loading itself maps the files into memory,
where an error of the disk would end the process; read first, it is an error like any other, and
the pages are then at hand. Loads no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdiff_grpc.engine.models.checkpoint import read_json
from vdiff_grpc.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_CHUNK_BYTES = 1 << 24
_DTYPES = ("F64", "F32", "F16", "BF16")


def check_files(root: Path, ignored_keys: Sequence[str] = ()) -> dict[str, Path]:
    """Every key of the checkpoint and the file that holds it.

    ignored_keys: regular expressions of keys that may be of any type.
    Raises CheckpointError: no weights, or a file or key that is missing, cut off, unreadable or
    of a type that is not served.
    """
    ignored = re.compile("|".join(ignored_keys)) if ignored_keys else None
    keys: dict[str, Path] = {}
    index = _read_index(root)
    for file in sorted(set(index.values())) if index else [root / SINGLE]:
        if not file.exists():
            pickles = sorted(p.name for p in root.glob("*.bin"))
            more = f"; {pickles[0]} is a pickle, which is not loaded" if pickles else ""
            raise CheckpointError(f"{file}: no such file{more}")
        for key, dtype in _read_through(file).items():
            if dtype not in _DTYPES and not (ignored and ignored.search(key)):
                raise CheckpointError(
                    f"{file}: {key} is of the type {dtype}; weights of the types "
                    f"{', '.join(_DTYPES)} are loaded"
                )
            keys[key] = file
    for key, file in index.items():
        if keys.get(key) != file:
            raise CheckpointError(f"{file}: {key} is not in it, though {INDEX} says so")
    return keys


def name_of_all(root: Path) -> Path:
    """The file that stands for all of a checkpoint's weights."""
    return root / (SINGLE if (root / SINGLE).exists() else INDEX)


def _read_index(root: Path) -> dict[str, Path]:
    """Key -> file by the index of a checkpoint in parts; empty for one in a single file."""
    file = root / INDEX
    if (root / SINGLE).exists() or not file.exists():
        return {}
    index = read_json(file)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file}: weight_map is {found!r}; expected keys and their files")
    if not isinstance(index.get("metadata"), dict):  # transformers reads it
        raise CheckpointError(f"{file}: the key 'metadata' is missing")
    for key, name in found.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{file}: {key} is said to lie in {name!r}, which is no file name"
            )
    return {key: root / name for key, name in found.items()}


def _read_through(file: Path) -> dict[str, str]:
    """Each key's type, as safetensors calls it. Reads the whole file."""
    from safetensors import SafetensorError, safe_open

    try:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: is no complete safetensors file ({size} bytes)")
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            read_tensors(file, stream, header)
        with safe_open(str(file), framework="numpy"):
            pass  # the format's own checks
    except (SafetensorError, OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{file}: is no complete safetensors file: {error}") from error
    return {key: str(entry["dtype"]) for key, entry in header.items()}


def read_tensors(file: Path, stream: Any, header: dict[str, Any]) -> None:
    """The rest of an open file, tensor by tensor."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        left = end - begin
        while left > 0:
            try:
                count = stream.readinto(buffer[: min(left, _CHUNK_BYTES)])
            except OSError as error:
                raise CheckpointError(f"{file}: {key} cannot be read: {error}") from error
            if not count:
                raise CheckpointError(f"{file}: ends within {key}: {left} bytes are missing")
            left -= count
