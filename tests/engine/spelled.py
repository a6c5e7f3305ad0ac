"""The tiny random checkpoint with a tokenizer: 97 tokens that can spell JSON, some of them in half."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.engine.tools import TINY

_PIECES = [
    *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *'{}[]":,. -+_@/TZEN\\',
    '": ', '", "', '{"', '"}', '"]', '["', "true", "false", "null", "name", "age", "ab", "abc", "yes",
    "no", "10", "42", "19", "20", "-0", ", ", "<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>",
    "e\u0301", "ag", "tru", "}}", "]}", "\n", "\u2581a", "id", "on",
]  # fmt: skip


def spelled_checkpoint(folder: Path, source: Path = TINY, end: int = 95, mask: int = 96) -> Path:
    """Copies the checkpoint and adds a tokenizer.json."""
    for file in source.iterdir():
        shutil.copy(file, folder / file.name)
    pieces = list(dict.fromkeys(_PIECES))
    assert len(pieces) <= end
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    vocabulary |= {f"<{number}>": number for number in range(len(pieces), max(end, mask))}
    vocabulary |= {"<end>": end, "<mask>": mask}
    specials = [
        {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for number, name in ((end, "<end>"), (mask, "<mask>"))
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": specials,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
