"""Masked language models against transformers' own classes, one canvas at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.tools import add, finished, run_all, tiny_engine
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.errors import CheckpointError

VOCAB, LENGTHS = 61, (19, 3, 40, 19, 1)

# Nothing square and no two sizes alike: an exchanged axis shows.
_LIKE_BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
}
CLASSES: dict[str, dict[str, Any]] = {
    "Bert": _LIKE_BERT,
    "DistilBert": {
        "vocab_size": VOCAB,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 66,
    },
    "Albert": {**_LIKE_BERT, "embedding_size": 20},
    "Roberta": {**_LIKE_BERT, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "XLMRoberta": {**_LIKE_BERT, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "ModernBert": {
        **_LIKE_BERT,
        "num_hidden_layers": 4,  # the first and the last see everything
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    },
}


def random_weights(network: torch.nn.Module) -> None:
    """Weights large enough that every part of the network shows in the logits."""
    for name, parameter in sorted(network.named_parameters()):
        around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        with torch.no_grad():
            parameter.normal_(around, 0.2)


def build(stem: str, folder: Path, **changes: Any) -> Any:
    """A random model of a class, saved as that class saves it."""
    torch.manual_seed(len(stem))
    config = getattr(transformers, f"{stem}Config")(**{**CLASSES[stem], **changes})
    network = getattr(transformers, f"{stem}ForMaskedLM")._from_config(
        config, attn_implementation="sdpa"
    )
    random_weights(network)
    network.tie_weights()
    network.eval().save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["mask_token_id"] = VOCAB - 1
    (folder / "config.json").write_text(json.dumps(saved))
    return network


def canvases() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (length,), generator=draw) for length in LENGTHS]


def packed_logits(model: loader.LoadedModel, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every position's logits, all rows in one pass."""
    lengths = [len(row) for row in rows]
    logits = model.logits(
        torch.cat(rows),
        torch.cat([torch.arange(length) for length in lengths]),
        AttentionLayout.of_lengths(lengths, [FULL] * len(lengths)),
        torch.arange(sum(lengths)),
    )
    return list(logits.split(lengths))


@pytest.mark.parametrize("stem", CLASSES)
def test_logits_equal_those_of_the_plain_class(stem: str, tmp_path: Path) -> None:
    network = build(stem, tmp_path)
    rows = canvases()
    model = loader.load(str(tmp_path), "cpu", "float32")
    for row, ours in zip(rows, packed_logits(model, rows), strict=True):
        with torch.inference_mode():
            expected = network(input_ids=row[None]).logits[0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.1, "a network that says something"


@pytest.mark.parametrize("stem", CLASSES)
def test_only_the_wanted_positions_get_logits(stem: str, tmp_path: Path) -> None:
    build(stem, tmp_path)
    model = loader.load(str(tmp_path), "cpu", "float32")
    row = canvases()[0]
    wanted = torch.tensor([17, 4, 5])
    layout = AttentionLayout.of_lengths([len(row)], [FULL])
    few = model.logits(row, torch.arange(len(row)), layout, wanted)
    every = packed_logits(model, [row])[0]
    torch.testing.assert_close(few, every[wanted], atol=1e-5, rtol=0)
    assert few.shape == (3, model.vocab_width)


@pytest.mark.parametrize("stem", CLASSES)
def test_a_row_is_the_same_in_any_company(stem: str, tmp_path: Path) -> None:
    build(stem, tmp_path)
    engine = tiny_engine(tmp_path)
    requests = [
        Request(
            TokensPrompt(tuple((row[:16] % (VOCAB - 1)).tolist())),
            RequestParams(max_new_tokens=new, temperature=0.5, seed=new, ignore_eos=True),
        )
        for row, new in zip(canvases(), (9, 3, 24, 40, 11), strict=True)
    ]
    alone = []
    for request in requests:
        add(engine, 0, request)
        alone.append(finished(run_all(engine)[0]).outputs[0].tokens)
    for key, request in enumerate(requests):
        add(engine, key, request)
    together = run_all(engine)
    for key, tokens in enumerate(alone):
        assert finished(together[key]).outputs[0].tokens == tokens, "ids and confidences, exactly"


def test_a_local_layer_of_modernbert_sees_its_window_only(tmp_path: Path) -> None:
    build("ModernBert", tmp_path, num_hidden_layers=3, layer_types=["sliding_attention"] * 3)
    model = loader.load(str(tmp_path), "cpu", "float32")
    row = canvases()[2]
    other = row.clone()
    other[20] = 3 if row[20] != 3 else 4
    before, after = (packed_logits(model, [r])[0] for r in (row, other))
    changed = (before != after).any(dim=-1).nonzero().flatten()
    # three layers of a half window of four
    assert (changed.min(), changed.max()) == (20 - 12, 20 + 12)


@pytest.mark.parametrize(
    ("stem", "positions", "offset"), [("Bert", 66, 0), ("Roberta", 64, 2), ("XLMRoberta", 64, 2)]
)
def test_roberta_counts_positions_from_its_padding_on(
    stem: str, positions: int, offset: int, tmp_path: Path
) -> None:
    network = build(stem, tmp_path)
    info = describe(str(tmp_path))
    model = loader.load(str(tmp_path), "cpu", "float32")
    assert (info.max_positions, model.position_offset) == (positions, offset)
    longest = torch.full((positions,), 5)
    with torch.inference_mode():
        expected = network(input_ids=longest[None]).logits[0]
    torch.testing.assert_close(packed_logits(model, [longest])[0], expected, atol=1e-4, rtol=0)


def test_heads_of_other_tasks_in_the_file_are_left_there(tmp_path: Path) -> None:
    network = build("Bert", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    old_names = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in weights.items()
    }
    others = {
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "bert.pooler.dense.bias": torch.ones(32),
        "cls.seq_relationship.weight": torch.ones(2, 32),
        "cls.seq_relationship.bias": torch.ones(2),
        "bert.embeddings.position_ids": torch.arange(66)[None],
    }
    save_file({**old_names, **others}, file, metadata={"format": "pt"})
    model = loader.load(str(tmp_path), "cpu", "float32")
    row = canvases()[0]
    with torch.inference_mode():
        expected = network(input_ids=row[None]).logits[0]
    torch.testing.assert_close(packed_logits(model, [row])[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "option",
    [
        {"return_dict": False},
        {"torchscript": True},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"attn_implementation": "flash_attention_2"},
        {"torch_dtype": "bfloat16"},
    ],
)
def test_how_somebody_else_ran_the_model_changes_nothing(
    option: dict[str, Any], tmp_path: Path
) -> None:
    build("Roberta", tmp_path)
    row = canvases()[0]
    expected = packed_logits(loader.load(str(tmp_path), "cpu", "float32"), [row])[0]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | option))
    model = loader.load(str(tmp_path), "cpu", "float32")
    torch.testing.assert_close(packed_logits(model, [row])[0], expected, atol=0, rtol=0)


def test_a_head_that_is_not_tied_keeps_its_own_weights(tmp_path: Path) -> None:
    network = build("Bert", tmp_path, tie_word_embeddings=False)
    decoder, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    assert not torch.equal(decoder.weight, embeddings.weight)
    model = loader.load(str(tmp_path), "cpu", "float32")
    row = canvases()[0]
    with torch.inference_mode():
        expected = network(input_ids=row[None]).logits[0]
    torch.testing.assert_close(packed_logits(model, [row])[0], expected, atol=1e-4, rtol=0)


def test_a_bert_that_looks_back_only_is_refused(tmp_path: Path) -> None:
    build("Bert", tmp_path, is_decoder=True)
    with pytest.raises(CheckpointError, match="is_decoder is True"):
        loader.load(str(tmp_path), "cpu", "float32")
