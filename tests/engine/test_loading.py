"""Checkpoints that cannot be loaded say which file, which key and what was expected."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.tools import GOLDEN, TINY
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.models import loader, weights
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.errors import CheckpointError

NORM = "model.transformer.ln_f.weight"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change_config(path: Path, drop: str = "", **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    config.pop(drop, None)
    config.update(values)
    (path / "config.json").write_text(json.dumps(config))


def change_weights(path: Path, drop: str = "", **extra: torch.Tensor) -> None:
    found = load_file(path / "model.safetensors")
    found.pop(drop, None)
    save_file({**found, **extra}, path / "model.safetensors")


def shard(path: Path) -> dict[str, str]:
    """The weights in two files and an index; returns the index's map."""
    found = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    where = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(found)}
    for name in set(where.values()):
        save_file({k: v for k, v in found.items() if where[k] == name}, path / name)
    write_index(path, where)
    return where


def write_index(path: Path, where: object) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def logits(path: Path, dtype: str = "float32") -> torch.Tensor:
    model = loader.load(str(path), "cpu", dtype)
    ids = torch.arange(20)
    return model.logits(ids, ids, AttentionLayout.of_lengths([20], [FULL]), ids)


# --- what is described -------------------------------------------------------


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
    change_weights(copy, **{NORM: torch.ones(32)})
    assert describe(str(copy)).revision != before


def test_a_missing_folder_and_broken_json_are_named(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        describe(str(tmp_path / "nowhere"))
    for name, text in [("generation_config.json", "[]"), ("config.json", "{")]:
        (copy / name).write_text(text)
        with pytest.raises(CheckpointError, match=rf"{name}: (cannot be read as|expected a) JSON"):
            describe(str(copy))


@pytest.mark.parametrize("key", ["vocab_size", "max_sequence_length", "mask_token_id"])
def test_a_missing_key_of_the_config_is_named(copy: Path, key: str) -> None:
    change_config(copy, drop=key)
    with pytest.raises(CheckpointError, match=rf"config.json: the key '{key}' is missing"):
        describe(str(copy))


@pytest.mark.parametrize("value", ["97", [97], 97.0, True])
def test_a_key_of_the_wrong_type_is_named_with_its_value(copy: Path, value: object) -> None:
    change_config(copy, vocab_size=value)
    with pytest.raises(CheckpointError, match=re.escape(f"config.json: vocab_size is {value!r}")):
        describe(str(copy))


def test_ids_outside_the_vocabulary_are_refused(copy: Path) -> None:
    change_config(copy, mask_token_id=97)
    with pytest.raises(CheckpointError, match=r"mask_token_id \(97\) is not in the vocabulary"):
        describe(str(copy))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("generation_config.json", {"eos_token_id": ["x"]}, r"eos_token_id is \['x'\]"),
        ("generation_config.json", {"temperature": "hot"}, "temperature is 'hot'"),
        ("generation_config.json", {"suppress_tokens": 1.5}, "suppress_tokens is 1.5"),
        ("config.json", {"architectures": "LLaDAModelLM"}, "expected a list of names"),
    ],
)
def test_values_of_the_wrong_type_name_their_file(
    copy: Path, name: str, values: dict[str, object], words: str
) -> None:
    file = copy / name
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **values}))
    with pytest.raises(CheckpointError, match=f"{name}: .*{words}"):
        describe(str(copy))


# --- what is refused before weights are read ---------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alibi": True}, "config.json: alibi is True"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type"),
        ({"d_model": "32"}, "d_model is '32'; expected an integer"),
        ({"n_layers": None}, "the key 'n_layers' is missing"),
        ({"n_heads": 0}, "config.json: ZeroDivisionError"),
        ({"rms_norm_eps": "small"}, "config.json: .*rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not loaded"),
    ],
)
def test_a_model_we_cannot_serve_is_refused(
    copy: Path, values: dict[str, object], words: str
) -> None:
    change_config(copy, **values)
    if None in values.values():
        change_config(copy, drop=next(iter(values)))
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu")


# --- weights -----------------------------------------------------------------


def test_a_missing_weight_is_never_left_to_chance(copy: Path) -> None:
    change_weights(copy, drop="model.transformer.blocks.1.up_proj.weight")
    words = r"model.safetensors: missing keys: model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu")


def test_an_unknown_weight_is_named(copy: Path) -> None:
    change_weights(copy, **{"model.transformer.extra.weight": torch.ones(2)})
    words = r"model.safetensors: unexpected keys: .*model.transformer.extra.weight"
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu")


def test_a_wrong_shape_is_named(copy: Path) -> None:
    change_weights(copy, **{NORM: torch.ones(7)})
    words = rf"norm.weight is \[7\], expected \[32\] \(model.safetensors: {NORM}\)"
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu")


def test_a_file_cut_off_is_named_with_the_key_where_it_ends(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends within model\.transf"):
        loader.load(str(copy), "cpu")
    for length in (0, 7, 500):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model.safetensors: is no complete"):
            loader.load(str(copy), "cpu")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b'"dtype"', b'"dtipe"'),
        lambda data: data.replace(b"data_offsets", b"data_0ffsets"),
        lambda data: data + b"more",
    ],
)
def test_a_broken_header_is_named(copy: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model.safetensors: is no complete"):
        loader.load(str(copy), "cpu")


class Failing:
    """A file on a disk that fails after some bytes."""

    def __init__(self, good: int) -> None:
        self.good = good

    def readinto(self, buffer: memoryview) -> int:
        if self.good <= 0:
            raise OSError(5, "Input/output error")
        count = min(self.good, len(buffer))
        self.good -= count
        return count


def test_an_error_of_the_disk_names_the_key_that_was_read() -> None:
    header = {"first": {"data_offsets": [0, 400]}, "second": {"data_offsets": [400, 900]}}
    weights.read_tensors(Path("some.safetensors"), Failing(900), header)
    with pytest.raises(CheckpointError, match=r"some.safetensors: second cannot be read: .*output"):
        weights.read_tensors(Path("some.safetensors"), Failing(400), header)


def test_a_folder_in_the_place_of_a_file_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model.safetensors: "):
        loader.load(str(copy), "cpu")


def test_weights_that_are_no_floats_are_refused(copy: Path) -> None:
    change_weights(copy, **{NORM: torch.ones(32, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=rf"model.safetensors: {NORM} is of the type I8"):
        loader.load(str(copy), "cpu")


def test_a_pickle_is_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        loader.load(str(copy), "cpu")


# --- weights in parts --------------------------------------------------------


def test_weights_in_parts_are_the_same_weights(copy: Path) -> None:
    expected = logits(copy)
    shard(copy)
    torch.testing.assert_close(logits(copy), expected, atol=0, rtol=0)


def test_a_missing_part_is_named(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: no such file"):
        loader.load(str(copy), "cpu")


def test_a_part_without_a_key_of_the_index_is_named(copy: Path) -> None:
    where = shard(copy)
    other = "model-00001-of-00002.safetensors"
    key = next(key for key, name in where.items() if name != other)
    write_index(copy, {**where, key: other})
    with pytest.raises(CheckpointError, match=rf"{other}: {re.escape(key)} is not in it"):
        loader.load(str(copy), "cpu")


@pytest.mark.parametrize("where", [None, [], {}, {NORM: 3}, {NORM: "../model.safetensors"}])
def test_an_index_that_is_none_is_named(copy: Path, where: object) -> None:
    shard(copy)
    write_index(copy, where)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: "):
        loader.load(str(copy), "cpu")


def test_an_index_without_metadata_is_named(copy: Path) -> None:
    where = shard(copy)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match=r"index.json: the key 'metadata' is missing"):
        loader.load(str(copy), "cpu")


# --- tied heads, types, devices ----------------------------------------------


def test_a_head_that_is_not_tied_must_be_there(copy: Path) -> None:
    change_weights(copy, drop="model.transformer.ff_out.weight")
    with pytest.raises(CheckpointError, match=r"missing keys: lm_head.weight"):
        loader.load(str(copy), "cpu")


def test_a_tied_head_is_the_embedding() -> None:
    network = loader.load(str(GOLDEN / "tiny-llada-tied"), "cpu").network
    assert network.lm_head.weight is network.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_checkpoint_loads_in_either_type(copy: Path, dtype: str) -> None:
    exact = logits(copy)
    half = {k: v.bfloat16() for k, v in load_file(copy / "model.safetensors").items()}
    save_file(half, copy / "model.safetensors")
    difference = logits(copy, dtype) - exact
    assert difference.square().mean().sqrt() < 0.1 * exact.std()
    model = loader.load(str(copy), "cpu", dtype)
    assert model.dtype is getattr(torch, dtype)
    assert all(p.dtype is model.dtype for p in model.network.parameters())


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


# --- a server ----------------------------------------------------------------


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_a_server_with_a_broken_checkpoint_ends_and_names_the_file(copy: Path, broken: str) -> None:
    (copy / broken).write_bytes(b"{" * 40)
    options = ("--model", str(copy), "--port", "0", "--device", "cpu", "--threads", "1")
    done = subprocess.run(
        [sys.executable, "-m", "vdiff_grpc", "serve", *options],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode != 0
    assert str(copy / broken) in done.stderr
    assert "Traceback" not in done.stderr
