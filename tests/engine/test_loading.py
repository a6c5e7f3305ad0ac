"""Checkpoints that cannot be loaded say which file and what was expected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.tools import TINY
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.errors import CheckpointError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change_config(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(values)
    (path / "config.json").write_text(json.dumps(config))


def change_weights(path: Path, drop: str = "", **extra: torch.Tensor) -> None:
    weights = load_file(path / "model.safetensors")
    weights.pop(drop, None)
    save_file({**weights, **extra}, path / "model.safetensors")


def test_the_description_needs_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    info = describe(str(copy), "mine")
    assert (info.name, info.family, info.mask_token_id, info.end_token_ids) == (
        "mine",
        "llada",
        96,
        (95,),
    )


def test_the_fingerprint_follows_the_weights(copy: Path) -> None:
    before = describe(str(copy)).revision
    change_weights(copy, **{"model.transformer.ln_f.weight": torch.ones(32)})
    assert describe(str(copy)).revision != before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2"]}, "'gpt2'.*supported model types: llada"),
        ({"alibi": True}, "alibi is True"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type"),
    ],
)
def test_a_model_we_cannot_serve_is_refused(
    copy: Path, values: dict[str, object], words: str
) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu")


def test_a_missing_weight_is_never_left_to_chance(copy: Path) -> None:
    change_weights(copy, drop="model.transformer.blocks.1.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"missing keys: model.layers.1.mlp.up_proj"):
        loader.load(str(copy), "cpu")


def test_an_unknown_weight_is_named(copy: Path) -> None:
    change_weights(copy, **{"model.transformer.extra.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"unexpected keys: .*extra"):
        loader.load(str(copy), "cpu")


def test_a_wrong_shape_is_named(copy: Path) -> None:
    change_weights(copy, **{"model.transformer.ln_f.weight": torch.ones(7)})
    with pytest.raises(CheckpointError, match=r"norm.weight is \[7\], expected \[32\]"):
        loader.load(str(copy), "cpu")


def test_a_truncated_file_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is no complete"):
        loader.load(str(copy), "cpu")


def test_a_pickle_is_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        loader.load(str(copy), "cpu")


def test_a_missing_folder_and_broken_json_are_named(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        describe(str(tmp_path / "nowhere"))
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read as JSON"):
        describe(str(copy))


def test_an_unusable_device_is_named() -> None:
    with pytest.raises(CheckpointError, match="cuda:99"):
        loader.load(str(TINY), "cuda:99")


def test_auto_prefers_cuda_then_mps_then_the_cpu() -> None:
    expected = "cpu"
    if torch.backends.mps.is_available():
        expected = "mps"
    if torch.cuda.is_available():
        expected = "cuda"
    device = loader.choose_device("auto")
    assert device.type == expected
    kind = torch.bfloat16 if expected == "cuda" else torch.float32
    assert loader.choose_dtype("auto", device) is kind


def test_bfloat16_loads() -> None:
    model = loader.load(str(TINY), "cpu", "bfloat16")
    assert model.dtype is torch.bfloat16
    assert all(p.dtype is torch.bfloat16 for p in model.network.parameters())
