"""LLaDA-MoE against its modelling code, and against LLaDA's generate.py on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.tools import GOLDEN
from tests.golden.test_family_logits import packed_logits, recorded
from tests.golden.test_llada import check_case, llada_params
from vdiff_grpc.engine.attention import CAUSAL, FULL
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

CHECKPOINT = "tiny-llada-moe"
CASES = json.loads((GOLDEN / "llada_moe_generate.json").read_text())["cases"]


def test_logits_equal_the_reference_modelling_code() -> None:
    model = loader.load(str(GOLDEN / CHECKPOINT), "cpu", "float32")
    cases = recorded(CHECKPOINT, "llada_moe_logits.safetensors")
    ours = packed_logits(model, [ids for ids, _, _ in cases], [FULL] * len(cases))
    for row, (_, expected, _) in zip(ours, cases, strict=True):
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


def test_with_causal_attention_it_is_another_model() -> None:
    model = loader.load(str(GOLDEN / CHECKPOINT), "cpu", "float32")
    ids, expected, _ = recorded(CHECKPOINT, "llada_moe_logits.safetensors")[0]
    [ours] = packed_logits(model, [ids], [CAUSAL])
    assert (ours - expected).abs().max() > 0.1


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_fixed_schedule_commits_what_llada_generate_commits(case: dict[str, Any]) -> None:
    check_case(case, llada_params(case))


def test_what_the_config_says() -> None:
    info = describe(str(GOLDEN / CHECKPOINT))
    assert (info.family, info.attention) == ("llada_moe", AttentionPattern.FULL)
    assert (info.mask_token_id, info.end_token_ids, info.shift) == (96, (95,), 0)
    assert (info.vocab_size, info.max_positions, info.supports_infill) == (97, 128, True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / CHECKPOINT, tmp_path / "model"))


def change_config(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    config = {key: value for key, value in {**config, **values}.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(config))


def test_the_mask_id_is_the_published_one_where_the_config_names_none(copy: Path) -> None:
    change_config(copy, mask_token_id=..., vocab_size=157184)
    assert describe(str(copy)).mask_token_id == 156895


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8"),
        ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias is True"),
        ({"qk_layernorm": False}, "qk_layernorm is False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"clip_qkv": 8}, "clip_qkv is 8"),
        ({"moe_layer_freq": ...}, "'moe_layer_freq' is missing"),
    ],
)
def test_what_the_class_cannot_express_is_refused(
    copy: Path, values: dict[str, object], words: str
) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu", "float32")


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_a_missing_expert_is_reported(copy: Path, projection: str) -> None:
    """Experts are merged in the order of their numbers: one that lacks would shift the others."""
    weights = load_file(copy / "model.safetensors")
    del weights[f"model.layers.1.mlp.experts.4.{projection}.weight"]
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts"):
        loader.load(str(copy), "cpu", "float32")


def test_an_expert_too_many_is_reported(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        name = "model.layers.2.mlp.experts.{}." + projection + ".weight"
        weights[name.format(8)] = weights[name.format(7)].clone()
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts"):
        loader.load(str(copy), "cpu", "float32")
