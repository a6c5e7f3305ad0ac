"""Weights in eight bits: near the checkpoint's own, and the same answers in any company."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.engine.test_company import check_company
from tests.engine.tools import GOLDEN, TINY, tiny_engine
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.models import loader, quantization
from vdiff_grpc.errors import CheckpointError

# Packages as fetched; bitsandbytes is large and not among those of a checkout.
INT8 = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not importlib.util.find_spec(name.partition("-")[0]),
            reason=f"{name.partition('-')[0]} is not installed",
        ),
    )
    for name in ("torchao-int8", "bitsandbytes-8bit")
]


@pytest.mark.parametrize("name", INT8)
def test_eight_bits_keep_the_promise(name: str) -> None:
    check_company(1, quantization=name)


@pytest.mark.parametrize("name", INT8)
def test_eight_bits_are_near_the_whole_weights_and_are_eight_bits(name: str) -> None:
    whole = loader.load(str(TINY), "cpu", "float32")
    small = loader.load(str(TINY), "cpu", "float32", quantized=name)
    ids = torch.arange(64) % 90
    given = (ids, torch.arange(64), AttentionLayout.of_lengths([64], [FULL]), torch.arange(64))
    expected, found = whole.logits(*given), small.logits(*given)
    difference = float((found - expected).square().mean().sqrt() / expected.std())
    assert 1e-4 < difference < 0.15
    layer = small.network.get_submodule("model.layers.0.self_attn.q_proj")
    weight = layer.weight
    assert torch.int8 in {weight.dtype, getattr(getattr(weight, "qdata", weight), "dtype", None)}


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        ("tiny-llada-moe", "the family llada_moe have experts"),
        ("tiny-llada2", "the family llada2 have experts"),
        ("tiny-diffusion-gemma", "the family diffusion_gemma have rows computed one by one"),
    ],
)
def test_a_family_whose_weights_are_no_linear_layers_is_refused(
    checkpoint: str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"quantization is torchao-int8: .*{reason}"):
        tiny_engine(GOLDEN / checkpoint, quantization="torchao-int8")


def test_four_bits_of_torchao_are_refused_without_their_kernels_or_on_a_cpu() -> None:
    with pytest.raises(CheckpointError, match="not installed: .*mslk|bfloat16 on cuda only"):
        tiny_engine(quantization="torchao-int4")


def test_an_unknown_kind_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CheckpointError, match="known are none, torchao-int8, .*4bit"):
        tiny_engine(quantization="int3")


def test_quantised_weights_are_not_split() -> None:
    with pytest.raises(CheckpointError, match="quantised weights are not split"):
        tiny_engine(quantization="torchao-int8", tensor_parallel_size=2)


def test_the_servers_choices_are_those_of_the_engine() -> None:
    rule = ServerConfig.__dataclass_fields__["quantization"].metadata["rule"]
    assert rule.pattern.split("|") == [quantization.NONE, *quantization.PACKAGES]
