"""Which checkpoints have tokens that grow and shrink holes, and what stands around a template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from tests.engine.tools import GOLDEN, tiny_engine
from tests.growth import DELETE, EXPAND, growing_checkpoint
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, Prompt, TextPrompt, TokensPrompt
from vdiff_grpc.engine.types import GrowthTokens, Request, RequestParams
from vdiff_grpc.engine.validation import encode_prompt
from vdiff_grpc.errors import CheckpointError

BOS = 90


def with_tokenizer(path: Path, **named: int) -> Path:
    """A word for each id, and special tokens of these names."""
    vocab = {f"w{i}": i for i in range(97) if i not in named.values()} | named
    rust = RustTokenizer(models.WordLevel(vocab, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens([AddedToken(name, special=True) for name in named])
    rust.save(str(path / "tokenizer.json"))
    return path


def test_the_config_names_expand_and_the_end_of_text_deletes(tmp_path: Path) -> None:
    info = describe(str(growing_checkpoint(tmp_path)))
    # tiny-dream's bos
    assert info.growth == GrowthTokens(EXPAND, DELETE, (95,), (DELETE,))
    own = describe(str(growing_checkpoint(tmp_path, 40, 41, delete_token_id=7)))
    assert own.growth == GrowthTokens(40, 7, (95,), (41,))
    assert describe(str(GOLDEN / "tiny-dream")).growth is None


def test_without_a_word_in_the_config_the_tokenizers_names_count(tmp_path: Path) -> None:
    path = growing_checkpoint(tmp_path, expand_token_id=None)
    assert describe(str(path)).growth is None
    info = describe(str(with_tokenizer(path, **{"<|expand|>": 50})))
    assert info.growth == GrowthTokens(50, DELETE, (95,), (DELETE,))
    both = describe(str(with_tokenizer(path, **{"<|expand|>": 50, "<|delete|>": 51})))
    assert both.growth == GrowthTokens(50, 51, (95,), (DELETE,))


def test_one_without_the_other_or_beyond_the_vocabulary_is_no_checkpoint(tmp_path: Path) -> None:
    path = growing_checkpoint(tmp_path, expand_token_id=None)
    with pytest.raises(CheckpointError, match="there is only one"):
        describe(str(with_tokenizer(path, **{"<|delete|>": 51})))
    far = growing_checkpoint(tmp_path, 5, 6, expand_token_id=97)
    with pytest.raises(CheckpointError, match=r"expand or delete token \(97\) is not in"):
        describe(str(far))


def test_a_template_of_text_stands_between_bos_and_end_of_text(tmp_path: Path) -> None:
    """As the checkpoint was trained; DreamLM/DreamOn demo/quickstart.py 8a0a549."""
    path = with_tokenizer(growing_checkpoint(tmp_path), **{"<bos>": BOS})
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    engine = tiny_engine(path)
    info, tokenizer, hole = engine.info, engine.tokenizer, Hole(max_length=3)

    def canvas(prompt: Prompt) -> list[int]:
        return encode_prompt(prompt, info, tokenizer)[0]

    assert canvas(InfillPrompt(("w1 w2", hole, "w3"))) == [BOS, 1, 2, 96, 96, 96, 3, DELETE]
    assert canvas(InfillPrompt(("w1", hole))) == [BOS, 1, 96, 96, 96, DELETE]
    with_suffix = Request(TextPrompt("w1", "w3"), RequestParams(max_new_tokens=2))
    assert engine.resolve(with_suffix).canvas == (BOS, 1, 96, 96, 3, DELETE)
    # a continuation is nobody's hole, and token ids are taken as they are
    assert canvas(TextPrompt("w1 w2")) == [1, 2]
    assert canvas(TokensPrompt((1, 2))) == [1, 2]
    assert canvas(InfillPrompt(((1, 2), hole, "w3"))) == [1, 2, 96, 96, 96, 3]
