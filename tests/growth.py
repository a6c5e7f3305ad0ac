"""Tiny checkpoints whose holes grow: tiny-dream, with any two of its tokens as DreamOn's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.engine.tools import GOLDEN

# What tiny-dream writes most often: holes then grow and shrink much.
EXPAND, DELETE = 39, 33


def growing_checkpoint(
    folder: Path, expand: int = EXPAND, delete: int = DELETE, **config: Any
) -> Path:
    """As published, the end of text is what deletes. config: keys of config.json besides."""
    path = folder / f"tiny-dreamon-{expand}-{delete}"
    if not path.exists():
        shutil.copytree(GOLDEN / "tiny-dream", path)
        own = {"config.json": {"expand_token_id": expand} | config, "generation_config.json": {}}
        for name, values in own.items():
            kept = json.loads((path / name).read_text())
            (path / name).write_text(json.dumps(kept | {"eos_token_id": delete} | values))
    return path
