"""LLaDA2.x against its modelling code and LLaDA2.0's own generate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.tools import GOLDEN, finished, run, tiny_engine, trajectory
from tests.golden.test_family_logits import packed_logits, recorded
from tests.golden.test_llada_moe import change_config
from vdiff_grpc.engine.attention import FULL, block_causal
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import DynamicThreshold
from vdiff_grpc.engine.types import AttentionPattern, Request, RequestParams
from vdiff_grpc.errors import CheckpointError

CHECKPOINT = "tiny-llada2"
CASES = json.loads((GOLDEN / "llada2_generate.json").read_text())["cases"]


def test_logits_equal_the_reference_modelling_code() -> None:
    model = loader.load(str(GOLDEN / CHECKPOINT), "cpu", "float32")
    cases = recorded(CHECKPOINT, "llada2_logits.safetensors")
    rules = [block_causal(block) for _, _, block in cases]
    ours = packed_logits(model, [ids for ids, _, _ in cases], rules)
    for row, (_, expected, _) in zip(ours, cases, strict=True):
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


def test_without_its_blocks_it_is_another_model() -> None:
    model = loader.load(str(GOLDEN / CHECKPOINT), "cpu", "float32")
    ids, expected, _ = recorded(CHECKPOINT, "llada2_logits.safetensors")[0]
    [ours] = packed_logits(model, [ids], [FULL])
    assert (ours - expected).abs().max() > 0.1


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_dynamic_threshold_commits_what_llada2_generate_commits(case: dict[str, Any]) -> None:
    """The reference counts steps by the block."""
    given = case["params"]
    prompt, length = tuple(case["prompt"]), given["gen_length"]
    steps = None
    if given["steps"] < given["block_length"]:
        assert len(prompt) % given["block_length"] == length % given["block_length"] == 0
        steps = given["steps"] * length // given["block_length"]
    params = RequestParams(
        max_new_tokens=length, steps=steps, strategy=DynamicThreshold(given["threshold"])
    )
    engine = tiny_engine(GOLDEN / CHECKPOINT, early_end=False)
    events = run(engine, Request(TokensPrompt(prompt), params))
    ours, theirs = trajectory(events), case["steps"]
    output = finished(events).outputs[0]
    asked = len(prompt) + length
    if len(case["final"]) > asked:
        # an answer is over at its length; the reference fills the block's rest
        assert 0 < len(ours) <= len(theirs)
        theirs = theirs[: len(ours)]
    else:
        assert output.forward_passes == case["forwards"]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    assert output.canvas[:asked] == tuple(case["final"][:asked])


def test_what_the_config_says() -> None:
    info = describe(str(GOLDEN / CHECKPOINT))
    assert (info.family, info.attention) == ("llada2", AttentionPattern.BLOCK_CAUSAL)
    assert (info.mask_token_id, info.end_token_ids, info.block_length) == (96, (95,), 8)
    assert info.default_strategy == DynamicThreshold(threshold=0.95)
    assert "editing" in info.strategies
    assert not info.supports_infill


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / CHECKPOINT, tmp_path / "model"))


def test_the_published_config_leaves_mask_and_blocks_to_the_code(copy: Path) -> None:
    change_config(copy, mask_token_id=..., block_length=..., vocab_size=157184)
    info = describe(str(copy))
    assert (info.mask_token_id, info.block_length) == (156895, 32)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_bias": True}, "use_bias is True"),
        ({"norm_head": True}, "norm_head is True"),
        ({"score_function": "softmax"}, "score_function is 'softmax'"),
        ({"num_shared_experts": 0}, "num_shared_experts is 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_scaling is"),
        ({"n_group": ...}, "'n_group' is missing"),
    ],
)
def test_what_the_class_cannot_express_is_refused(
    copy: Path, values: dict[str, object], words: str
) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu", "float32")


def change_weights(path: Path, drop: str, **more: torch.Tensor) -> None:
    weights = load_file(path / "model.safetensors")
    del weights[drop]
    save_file({**weights, **more}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.layers.1.attention.query_key_value.weight", "missing keys.*1.self_attn.[kqv]_proj"),
        ("model.layers.2.mlp.gate.expert_bias", "e_score_correction_bias"),
        ("model.layers.2.mlp.experts.11.up_proj.weight", "layers.2.mlp.experts"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", "shared_experts.up_proj"),
        ("model.word_embeddings.weight", "embed_tokens"),
    ],
)
def test_a_missing_weight_is_reported(copy: Path, key: str, words: str) -> None:
    change_weights(copy, key)
    with pytest.raises(CheckpointError, match=words):
        loader.load(str(copy), "cpu", "float32")


def test_a_fused_projection_of_another_size_is_reported(copy: Path) -> None:
    key = "model.layers.0.attention.query_key_value.weight"
    change_weights(copy, key, **{key: torch.zeros(56, 24)})
    with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
        loader.load(str(copy), "cpu", "float32")


def test_biases_of_the_fused_projection_are_parted_too(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    biases = {
        f"model.layers.{layer}.attention.query_key_value.bias": torch.arange(64.0) + layer
        for layer in range(3)
    }
    save_file({**weights, **biases}, copy / "model.safetensors")
    change_config(copy, use_qkv_bias=True)
    attention = loader.load(str(copy), "cpu", "float32").network.model.layers[2].self_attn  # type: ignore[union-attr,index]
    assert torch.equal(attention.q_proj.bias, torch.arange(32.0) + 2)
    assert torch.equal(attention.k_proj.bias, torch.arange(32.0, 48.0) + 2)
    assert torch.equal(attention.v_proj.bias, torch.arange(48.0, 64.0) + 2)
