"""What a model wants around a text: found in the tokenizer's files, laid out around prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from tests.engine.tools import finished, run, tiny_engine
from tests.golden.test_masked_lm import build
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, Prompt, TextPrompt, TokensPrompt
from vdiff_grpc.engine.prompts import Violations, lay_out
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import Request, RequestParams, SpanKind
from vdiff_grpc.errors import CheckpointError, InvalidRequestError

PAD, UNK, CLS, SEP, MASK, BOS = range(6)
SPECIALS = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, "<s>": BOS}
WORDS = ["the", "cat", "sat", "on", "mat", "##s", "dog"]

TEMPLATE = processors.TemplateProcessing(
    single="[CLS] <s> $A [SEP]", special_tokens=[("[CLS]", CLS), ("<s>", BOS), ("[SEP]", SEP)]
)
ONLY_BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
BERT = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
ROBERTA = processors.RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS))


def word_pieces(processor: Any = None) -> RustTokenizer:
    vocab = SPECIALS | {word: len(SPECIALS) + i for i, word in enumerate(WORDS)}
    rust = RustTokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.decoder = decoders.WordPiece()
    rust.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    if processor is not None:
        rust.post_processor = processor
    return rust


def save(folder: Path, rust: RustTokenizer, **config: object) -> None:
    rust.save(str(folder / "tokenizer.json"))
    names = {f"{n.strip('[]').lower()}_token": n for n in list(SPECIALS)[:5]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}))


@pytest.mark.parametrize(
    "processor",
    [
        None,
        TEMPLATE,
        ONLY_BOS,
        BERT,
        ROBERTA,
        processors.ByteLevel(),
        processors.Sequence([processors.ByteLevel(), BERT]),
    ],
)
def test_the_frame_is_what_the_tokenizer_puts_around_a_text(tmp_path: Path, processor: Any) -> None:
    rust = word_pieces(processor)
    save(tmp_path, rust)
    before, after = Config({}, tmp_path).frame()
    text = "the cat sat"
    bare = rust.encode(text, add_special_tokens=False).ids
    assert [*before, *bare, *after] == rust.encode(text).ids


@pytest.mark.parametrize(
    ("processor", "options", "expected"),
    [
        (None, {}, ()),
        (None, {"add_bos_token": True}, (BOS,)),
        (ONLY_BOS, {"add_bos_token": True}, (BOS,)),
        (ONLY_BOS, {"add_bos_token": False}, ()),
        (BERT, {"add_bos_token": False}, (CLS,)),
        # the class's own default; what it saves does not tell
        (None, {"tokenizer_class": "LlamaTokenizer"}, (BOS,)),
        (None, {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, ()),
        (None, {"tokenizer_class": "PreTrainedTokenizerFast"}, ()),
    ],
)
def test_whether_a_text_begins_with_bos(
    tmp_path: Path, processor: Any, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    save(tmp_path, word_pieces(processor), bos_token="<s>", **options)
    assert Config({}, tmp_path).frame()[0] == expected


def test_a_post_processor_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"post_processor": {"type": "Odd"}}')
    with pytest.raises(CheckpointError, match=r"tokenizer.json: a post-processor .* 'Odd'"):
        Config({}, tmp_path).frame()


# --- a whole BERT with a tokenizer ----------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("bert")
    build("Bert", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["mask_token_id"]  # the tokenizer's word counts
    (folder / "config.json").write_text(json.dumps(config))
    save(folder, word_pieces(BERT))
    return tiny_engine(folder)


def laid_out(engine: Engine, prompt: Prompt, num_new: int = 0) -> tuple[str, str]:
    """The canvas by name, and a letter for every position's span."""
    bad = Violations()
    canvas, spans = lay_out(prompt, engine.info, engine.tokenizer, num_new, bad)
    bad.raise_if_any()
    assert engine.tokenizer is not None
    names = " ".join(engine.tokenizer.token_text(i).strip() for i in canvas)
    letters = {SpanKind.PROMPT: "p", SpanKind.HOLE: "_", SpanKind.FROZEN: "f"}
    return names, "".join(letters[span.kind] * span.length for span in spans)


def ids(*words: str) -> tuple[int, ...]:
    return tuple(len(SPECIALS) + WORDS.index(word) for word in words)


def test_a_text_is_continued_between_its_marks(bert: Engine) -> None:
    expected = ("[CLS] the cat [MASK] [MASK] [SEP]", "ppp__f")
    assert laid_out(bert, TextPrompt("the cat"), 2) == expected


def test_a_suffix_stands_before_the_mark_of_the_end(bert: Engine) -> None:
    expected = ("[CLS] the [MASK] sat on [SEP]", "pp_fff")
    assert laid_out(bert, TextPrompt("the", "sat on"), 1) == expected


@pytest.mark.parametrize(
    ("segments", "names", "letters"),
    [
        ((Hole(1), "sat", Hole(2)), "[CLS] [MASK] sat [MASK] [MASK] [SEP]", "p_f__f"),
        (("the", Hole(1), "sat"), "[CLS] the [MASK] sat [SEP]", "pp_ff"),
        # token ids are taken as they are
        ((ids("the"), Hole(1), ids("sat")), "the [MASK] sat", "p_f"),
        ((ids("the"), Hole(1), "sat"), "the [MASK] sat", "p_f"),
    ],
)
def test_a_template_of_text_stands_between_its_marks(
    bert: Engine, segments: Any, names: str, letters: str
) -> None:
    assert laid_out(bert, InfillPrompt(segments)) == (names, letters)


def test_token_ids_are_taken_as_they_are(bert: Engine) -> None:
    assert laid_out(bert, TokensPrompt(ids("the", "cat")), 1) == ("the cat [MASK]", "pp_")


def test_marks_and_padding_are_never_generated(bert: Engine) -> None:
    params = RequestParams(max_new_tokens=40, temperature=2.0, seed=1)
    [output] = finished(run(bert, Request(TextPrompt("the cat"), params))).outputs
    assert len(output.tokens.ids) == 40, "the end is marked already, and not twice"
    assert not set(output.tokens.ids) & set(SPECIALS.values()) - {BOS}
    assert output.canvas[-1] == SEP


def test_the_mark_of_the_end_takes_one_of_the_models_positions(bert: Engine) -> None:
    prompt = TextPrompt("the cat")
    [output] = finished(run(bert, Request(prompt, RequestParams(max_new_tokens=62)))).outputs
    assert len(output.canvas) == bert.info.max_positions == 66
    with pytest.raises(InvalidRequestError, match=r"66 - 4 prompt tokens"):
        run(bert, Request(prompt, RequestParams(max_new_tokens=63)))


def test_a_written_mask_is_refused(bert: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="holes of an infill template"):
        run(bert, Request(TextPrompt("the [MASK] sat"), RequestParams()))


def test_where_only_the_beginning_is_marked_the_end_is_not(tmp_path: Path) -> None:
    engine = tiny_engine()
    save(tmp_path, word_pieces(ONLY_BOS))
    engine.tokenizer = Tokenizer.load(str(tmp_path))
    engine.info = replace(engine.info, prefix_ids=(BOS,))
    assert laid_out(engine, TextPrompt("the"), 1)[1] == "pp_"
    assert laid_out(engine, InfillPrompt(("the", Hole(1), "cat")))[1] == "pp_f"
    assert laid_out(engine, InfillPrompt((Hole(1), "cat")))[1] == "_f"
