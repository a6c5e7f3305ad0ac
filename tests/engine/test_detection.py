"""Which family a config.json is taken for, and what is refused with what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tools import GOLDEN, TINY
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.registry import FAMILIES, describe, find_family
from vdiff_grpc.engine.strategies import STRATEGIES
from vdiff_grpc.errors import CheckpointError


def checkpoint(folder: Path, **config: object) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return Config.read(folder)


def add_tokenizer(folder: Path, **specials: int) -> None:
    """A tokenizer that names its special tokens: role -> id."""
    content = {role: f"<{role}>" for role in specials}
    added = [{"id": i, "content": f"<{role}>", "special": True} for role, i in specials.items()]
    tokenizer = {"added_tokens": added, "model": {"type": "WordLevel", "vocab": {"a": 0}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "dream"),
        ({"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 4}, "sdar"),
        ({"model_type": "lladamoe"}, "llada_moe"),
        ({"model_type": "llada2_moe"}, "llada2"),
        ({"model_type": "diffusion_gemma", "canvas_length": 256}, "diffusion_gemma"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "bert"),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, "bert"),
        ({"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"]}, "distilbert"),
        ({"model_type": "albert", "architectures": ["AlbertForMaskedLM"]}, "albert"),
        ({"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}, "roberta"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}, "xlm-roberta"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "modernbert"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal_lm"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal_lm"),
    ],
)
def test_a_family_is_known_by_its_names(
    tmp_path: Path, config: dict[str, object], family: str
) -> None:
    assert find_family(checkpoint(tmp_path, **config)).name == family


def test_names_win_over_attributes(tmp_path: Path) -> None:
    config = checkpoint(tmp_path, architectures=["BertForMaskedLM"], mask_token_id=4)
    assert find_family(config).name == "bert"


@pytest.mark.parametrize(
    "attribute",
    [{"mask_token_id": 7}, {"diffusion_steps": 64}, {"canvas_length": 256}, {"block_size": 32}],
)
def test_a_diffusion_model_of_an_unknown_kind_is_not_served_as_a_causal_one(
    tmp_path: Path, attribute: dict[str, int]
) -> None:
    [(key, value)] = attribute.items()
    config = checkpoint(tmp_path, model_type="new", architectures=["NewForCausalLM"], **attribute)
    words = rf"config.json: model_type 'new'.*diffusion model of an unknown kind \({key} {value}\)"
    with pytest.raises(CheckpointError, match=words) as refused:
        find_family(config)
    assert "supported: llada, " in str(refused.value)


def test_an_attribute_without_a_value_says_nothing(tmp_path: Path) -> None:
    config = checkpoint(tmp_path, architectures=["LlamaForCausalLM"], mask_token_id=None)
    assert find_family(config).name == "causal_lm"


def test_a_causal_model_whose_tokenizer_has_a_mask_token_is_causal(tmp_path: Path) -> None:
    checkpoint(
        tmp_path,
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=9,
        max_position_embeddings=64,
    )
    add_tokenizer(tmp_path, mask_token=4, eos_token=2)
    info = describe(str(tmp_path))
    assert (info.family, info.mask_token_id, info.end_token_ids) == ("causal_lm", None, (2,))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["EsmForMaskedLM"]}, "a masked language model of an unknown kind"),
        ({"architectures": ["BertForSequenceClassification"]}, "no model that can be served"),
        ({"model_type": "bert"}, r"model_type 'bert', architectures \[\] is no model"),
        ({}, r"model_type None, architectures \[\] is no model"),
        ({"auto_map": {"AutoModel": "own.Model"}}, r"its own code \(auto_map\) is never run"),
    ],
)
def test_everything_else_is_refused_with_what_was_found(
    tmp_path: Path, config: dict[str, object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        find_family(checkpoint(tmp_path, **config))


def test_a_class_that_transformers_does_not_have_is_refused_when_it_loads(tmp_path: Path) -> None:
    from vdiff_grpc.engine.models import loader

    names = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": {}}
    checkpoint(tmp_path, **names)
    with pytest.raises(CheckpointError, match=r"'OwnForCausalLM' is no causal .* never run"):
        loader.load(str(tmp_path), "cpu")


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    weights = (TINY / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())
    ran = tmp_path / "ran"
    for name in ("configuration_llada.py", "modeling_llada.py"):
        (tmp_path / name).write_text(f"open({str(ran)!r}, 'w').close()\n")
    from vdiff_grpc.engine.models import loader

    loader.load(str(tmp_path), "cpu")
    assert not ran.exists()


def test_ids_beyond_the_vocabulary_end_nothing(tmp_path: Path) -> None:
    sizes = {"vocab_size": 9, "max_position_embeddings": 64}
    checkpoint(tmp_path, architectures=["GPT2LMHeadModel"], **sizes, eos_token_id=[50256, 8, 8])
    assert describe(str(tmp_path)).end_token_ids == (8,)


# --- masked language models ---------------------------------------------------

BERT = {"architectures": ["BertForMaskedLM"], "vocab_size": 9, "max_position_embeddings": 64}


def test_a_masked_model_reads_its_tokens_from_the_tokenizer(tmp_path: Path) -> None:
    checkpoint(tmp_path, **BERT, eos_token_id=3, bos_token_id=0)  # defaults that mean nothing
    add_tokenizer(tmp_path, mask_token=4, cls_token=5, sep_token=6, pad_token=7, unk_token=8)
    info = describe(str(tmp_path))
    assert (info.mask_token_id, info.end_token_ids) == (4, (6,))
    assert set(info.suppressed_ids) == {5, 7, 8}, "never generated; the mask is banned anyway"


def test_a_masked_model_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, **BERT)
    with pytest.raises(CheckpointError, match="no mask token"):
        describe(str(tmp_path))
    add_tokenizer(tmp_path, cls_token=5)
    with pytest.raises(CheckpointError, match="no mask token"):
        describe(str(tmp_path))
    checkpoint(tmp_path, **BERT, mask_token_id=4)
    assert describe(str(tmp_path)).mask_token_id == 4


def test_a_roberta_without_a_tokenizer_ends_its_vocabulary_with_the_mask(tmp_path: Path) -> None:
    sizes = {"vocab_size": 25, "max_position_embeddings": 146}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    checkpoint(tmp_path, architectures=["RobertaForMaskedLM"], **sizes, **ids)
    info = describe(str(tmp_path))
    assert (info.mask_token_id, info.max_positions) == (24, 144)
    assert (info.end_token_ids, info.suppressed_ids) == ((2,), (0, 1))


# --- the whole table -----------------------------------------------------------


def test_every_family_is_told_apart_and_names_strategies_that_exist() -> None:
    names = [name for family in FAMILIES for name in (*family.model_types, *family.architectures)]
    assert len(names) == len(set(names))
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert set(family.strategies) <= set(STRATEGIES)
        assert family.default_strategy.NAME in family.strategies


def test_describing_loads_neither_torch_nor_transformers() -> None:
    paths = [str(GOLDEN / name) for name in ("tiny-llada", "tiny-sdar", "tiny-causal")]
    check = (
        "import sys; from vdiff_grpc.engine.models.registry import describe; "
        f"[describe(p) for p in {paths!r}]; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- the auxiliary model ---------------------------------------------------------


def test_an_auxiliary_model_is_causal_and_has_the_same_vocabulary(tmp_path: Path) -> None:
    causal = str(GOLDEN / "tiny-causal")
    info = describe(str(TINY), "", causal)
    assert (info.auxiliary, "adaptive_parallel" in info.strategies) == ("tiny-causal", True)
    assert "adaptive_parallel" not in describe(str(TINY)).strategies
    with pytest.raises(CheckpointError, match="auxiliary model is a causal language model"):
        describe(str(TINY), "", str(TINY))
    sizes = {"vocab_size": 98, "max_position_embeddings": 64}
    checkpoint(tmp_path, architectures=["LlamaForCausalLM"], **sizes)
    with pytest.raises(
        CheckpointError, match=r"vocabulary \(98\) is not that of tiny-llada \(97\)"
    ):
        describe(str(TINY), "", str(tmp_path))


def words(folder: Path, *base: str, **added: int) -> None:
    """A tokenizer of these words, in their order, and added tokens."""
    tokens = [{"id": i, "content": content} for content, i in added.items()]
    vocab = {word: i for i, word in enumerate(base)}
    tokenizer = {"added_tokens": tokens, "model": {"type": "WordLevel", "vocab": vocab}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("width", "base", "fits"),
    [
        (4, ("a", "b", "c"), True),
        (9, ("a", "b", "c"), True),  # an embedding may be wider than it needs to be
        (3, ("a", "b", "c"), False),  # has no row for the mask
        (9, ("a", "c", "b"), False),
        (9, ("a", "b"), False),
    ],
)
def test_an_auxiliary_model_reads_what_the_model_writes(
    tmp_path: Path, width: int, base: tuple[str, ...], fits: bool
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    names = {"model_type": "Dream", "mask_token_id": 3}
    checkpoint(own, **names, vocab_size=6, max_position_embeddings=64)
    words(own, "a", "b", "c", mask=3)
    sizes = {"vocab_size": width, "max_position_embeddings": 64}
    checkpoint(other, architectures=["LlamaForCausalLM"], **sizes)
    words(other, *base)
    if fits:
        assert describe(str(own), "", str(other)).auxiliary == "other"
    else:
        with pytest.raises(CheckpointError, match="the same ids to the same tokens"):
            describe(str(own), "", str(other))
