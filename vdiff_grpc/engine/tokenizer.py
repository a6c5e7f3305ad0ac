"""Text to token ids and token ids to bytes. Loads neither torch nor transformers.

A token's bytes do not depend on its neighbours, so the text of any run of tokens is the
UTF-8 decoding of their bytes joined: that is what makes text offsets and stable prefixes exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer as RustTokenizer

from vdiff_grpc.engine.chat import ChatTemplate
from vdiff_grpc.engine.constraints.calls import CLOSE, OPEN
from vdiff_grpc.engine.prompt_types import ChatMessage, Tool
from vdiff_grpc.errors import CheckpointError


class Tokenizer:
    """One checkpoint's tokenizer and chat template. Safe to use from several threads."""

    def __init__(self, rust: RustTokenizer, chat_template: str, specials: dict[str, str]) -> None:
        self._rust = rust
        self._template = ChatTemplate(chat_template, specials) if chat_template else None
        self.vocab_size: int = rust.get_vocab_size(with_added_tokens=True)
        # Tags of calls are text where the template writes them, whatever the vocabulary says.
        text = (OPEN, CLOSE) if self.writes_calls else ()
        self.special_ids = frozenset(
            i
            for i, token in rust.get_added_tokens_decoder().items()
            if token.special and token.content not in text
        )
        self._bytes = _token_bytes(rust, self.special_ids)
        self.max_token_bytes = max(map(len, self._bytes.values()))

    @classmethod
    def load(cls, path: str) -> Tokenizer | None:
        """None when the checkpoint has no tokenizer.json: it is then served with token ids only.

        Raises CheckpointError naming the file.
        """
        root = Path(path)
        file = root / "tokenizer.json"
        if not file.exists():
            return None
        config: dict[str, Any] = {}
        config_file = root / "tokenizer_config.json"
        try:
            rust = RustTokenizer.from_file(str(file))
        except Exception as error:  # the bindings raise bare Exception
            raise CheckpointError(f"{file}: is no tokenizer: {error}") from error
        try:
            if config_file.exists():
                config = json.loads(config_file.read_text(encoding="utf-8"))
            template = _find_template(root, config)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{config_file}: cannot be read: {error}") from error
        rust.no_truncation()
        rust.no_padding()
        specials = {
            key: value if isinstance(value, str) else value["content"]
            for key, value in config.items()
            if key.endswith("_token") and isinstance(value, str | dict)
        }
        try:
            return cls(rust, template, specials)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"{path}: the chat template does not compile: {error}") from error

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def writes_calls(self) -> bool:
        """Whether the chat template has tools, and each call stands between tags."""
        return self._template is not None and self._template.writes_calls

    @property
    def defined_ids(self) -> frozenset[int]:
        """Ids that stand for a token; a model's vocabulary is often rounded up beyond them."""
        return frozenset(self._bytes)

    def encode(self, text: str) -> list[int]:
        """The text alone: what a model wants around it is ModelInfo's prefix and suffix."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> list[int]:
        """The conversation in the model's chat template, up to where the answer begins.

        tools: those that the model is told of. Raises ValueError with the template's words when it
        refuses the conversation.
        """
        if self._template is None:
            raise ValueError("the model has no chat template")
        return self.encode(self._template.render(messages, tools))

    def token_bytes(self, token_id: int) -> bytes:
        """The token's own bytes; none for special and undefined tokens."""
        return b"" if token_id in self.special_ids else self._bytes.get(token_id, b"")

    def token_text(self, token_id: int) -> str:
        """For display: special tokens by name, broken UTF-8 replaced."""
        if token_id in self.special_ids:
            return str(self._rust.id_to_token(token_id))
        return self.token_bytes(token_id).decode("utf-8", errors="replace")


def _find_template(root: Path, config: dict[str, Any]) -> str:
    """chat_template.jinja, or the key of tokenizer_config.json (its "default" of several)."""
    file = root / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", "")
    return str(template)


def _token_bytes(rust: RustTokenizer, special_ids: frozenset[int]) -> dict[int, bytes]:
    """Every defined token's bytes, by the kind of decoder that tokenizer.json names."""
    decoder = json.dumps(json.loads(rust.to_str()).get("decoder"))
    added = {i: t.content for i, t in rust.get_added_tokens_decoder().items()}
    table = {i: piece for piece, i in rust.get_vocab(with_added_tokens=True).items()}
    if "ByteLevel" in decoder:
        alphabet = _byte_level_alphabet()

        def convert(piece: str) -> bytes:
            if all(char in alphabet for char in piece):
                return bytes(alphabet[char] for char in piece)
            return piece.encode()

    elif "WordPiece" in decoder:

        def convert(piece: str) -> bytes:
            return (piece[2:] if piece.startswith("##") else " " + piece).encode()

    else:  # SentencePiece, or plain pieces

        def convert(piece: str) -> bytes:
            byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
            return bytes.fromhex(byte[1]) if byte else piece.replace("\u2581", " ").encode()

    return {i: added[i].encode() if i in added else convert(piece) for i, piece in table.items()}


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + n): b for n, b in enumerate(hidden)})
    return table
