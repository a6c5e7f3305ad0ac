"""Checks weights of few bits in a process of its own: python -m tests.engine.quantized NAME.

Where torchao lies, transformers imports it; other tests are not to pay for that.
"""

from __future__ import annotations

import sys

import torch

from tests.engine.test_company import check_company
from tests.engine.tools import TINY
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.models import loader


def check_near(name: str) -> None:
    """The logits are the whole weights' but for what the bits cost, and the weights are small."""
    whole = loader.load(str(TINY), "cpu", "float32")
    small = loader.load(str(TINY), "cpu", "float32", quantized=name)
    layout = AttentionLayout.of_lengths([64], [FULL])
    given = (torch.arange(64) % 90, torch.arange(64), layout, torch.arange(64))
    expected, found = whole.logits(*given), small.logits(*given)
    difference = float((found - expected).square().mean().sqrt() / expected.std())
    assert 1e-4 < difference < 0.15, difference
    weight = small.network.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert getattr(weight, "qdata", weight).dtype is torch.int8


if __name__ == "__main__":
    check_near(sys.argv[1])
    for dtype in ("float32", "bfloat16"):
        check_company(1, quantization=sys.argv[1], dtype=dtype)
