"""A checkpoint's JSON files: its config, its special tokens. Reads no weights, loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vdiff_grpc.errors import CheckpointError

# Classes that begin a text with their bos unless their config says otherwise: the tokenizer.json
# that they save does not tell.
_BEGIN_WITH_BOS = ("LlamaTokenizer", "LlamaTokenizerFast")


class Config(dict[str, Any]):
    """config.json of one checkpoint, and the folder where it lies.

    A key that is missing, or no number where one is wanted, is a CheckpointError that names the
    file, the key and what was found.
    """

    def __init__(self, values: dict[str, Any], root: Path) -> None:
        super().__init__(values)
        self.root = root
        self._tokenizer: dict[str, Any] | None = None

    @classmethod
    def read(cls, root: Path) -> Config:
        return cls(read_json(root / "config.json"), root)

    @property
    def path(self) -> Path:
        return self.root / "config.json"

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path}: the key {key!r} is missing")

    def integer(self, key: str, default: int | None = None) -> int:
        """The value of `key`, or `default` where it is absent or null."""
        value = self.get(key)
        if value is None:
            value = self[key] if default is None else default
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}; expected an integer")
        return value

    def integers(self, key: str) -> list[int]:
        """The value of `key`, an integer or a list of them; empty where it is absent or null."""
        return _integers(self, key, self.path)

    @property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json, read once: it may have tens of megabytes. Empty without one."""
        if self._tokenizer is None:
            self._tokenizer = read_optional(self.root / "tokenizer.json")
        return self._tokenizer

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the tokenizer's special tokens by role ("mask_token"), as far as it names them."""
        names = {
            key: value if isinstance(value, str) else value.get("content")
            for file in ("special_tokens_map.json", "tokenizer_config.json")
            for key, value in read_optional(self.root / file).items()
            if key.endswith("_token") and isinstance(value, str | dict)
        }
        ids = _vocabulary(self.tokenizer)
        return {key: ids[name] for key, name in names.items() if name in ids}

    def added_token_ids(self, names: tuple[str, ...]) -> list[int]:
        """Ids of added tokens with one of these contents, as far as the tokenizer has them."""
        added = self.tokenizer.get("added_tokens") or []
        return [int(token["id"]) for token in added if token.get("content") in names]

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts before and after a text.

        The post-processor of tokenizer.json says it, except that `add_bos_token` of
        tokenizer_config.json has the last word on a bos that stands alone.
        """
        processor = self.tokenizer.get("post_processor")
        before, after = _frame(processor, self.root / "tokenizer.json")
        options = read_optional(self.root / "tokenizer_config.json")
        bos = self.special_ids.get("bos_token")
        default = None
        if options.get("tokenizer_class") in _BEGIN_WITH_BOS and not before:
            default = True
        wanted = options.get("add_bos_token", default)
        if bos is None or wanted is None:
            return before, after
        if wanted and bos not in before:
            before = (bos, *before)
        elif not wanted and before == (bos,):
            before = ()
        return before, after


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


def read_optional(path: Path) -> dict[str, Any]:
    """As read_json; empty when there is no such file."""
    return read_json(path) if path.exists() else {}


def generation_config(root: Path) -> dict[str, Any]:
    return read_optional(root / "generation_config.json")


def generation_ids(root: Path, key: str) -> list[int]:
    """Ids that generation_config.json gives for `key`."""
    return _integers(generation_config(root), key, root / "generation_config.json")


def fits_vocabulary(root: Path, other: Path, other_width: int) -> bool:
    """Whether another checkpoint can read what this one writes.

    Its tokenizer gives the same ids to the same pieces. Only added tokens may be missing there
    (a mask, marks of turns), as long as its embedding (`other_width`) has a row for them.
    """
    mine, theirs = (read_optional(path / "tokenizer.json") for path in (root, other))
    pieces = {i: piece for piece, i in _vocabulary(mine).items()}
    known = {i: piece for piece, i in _vocabulary(theirs).items()}
    added = {token["id"] for token in mine.get("added_tokens") or []}
    return all(
        known[i] == piece if i in known else i in added and i < other_width
        for i, piece in pieces.items()
    )


def _integers(values: dict[str, Any], key: str, path: Path) -> list[int]:
    value = values.get(key)
    found = value if isinstance(value, list) else [] if value is None else [value]
    for item in found:
        if not isinstance(item, int) or isinstance(item, bool):
            raise CheckpointError(f"{path}: {key} is {value!r}; expected an integer or integers")
    return found


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Pieces and their ids, added tokens included."""
    vocab = tokenizer.get("model", {}).get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [piece, score], the id is the place
        vocab = {entry[0]: index for index, entry in enumerate(vocab)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    return {**vocab, **added}


def _frame(processor: Any, file: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What one post-processor puts before and after a single text."""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    match processor:
        case {"type": "TemplateProcessing", "single": list(items), "special_tokens": dict(tokens)}:
            seen = False
            for item in items:
                if "Sequence" in item:
                    seen = True
                    continue
                ids = tuple(tokens[item["SpecialToken"]["id"]]["ids"])
                before, after = (before, after + ids) if seen else (before + ids, after)
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, first], "sep": [_, last]}:
            before, after = (int(first),), (int(last),)
        case {"type": "Sequence", "processors": list(parts)}:
            for part in parts:
                outer_before, outer_after = _frame(part, file)
                before, after = outer_before + before, after + outer_after
        case None | {"type": "ByteLevel"}:
            pass
        case {"type": str(kind)}:
            raise CheckpointError(
                f"{file}: a post-processor of the type {kind!r} is not known here"
            )
    return before, after
