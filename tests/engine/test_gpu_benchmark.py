"""benchmarks/gpu.py at its smallest: its sums are torch's own count, and its loops are the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from vdiff_grpc.engine.attention import FULL, AttentionLayout

SHAPE = gpu.Shape(64, 96, 2, 4, 997, 4)


def test_its_sums_are_what_torch_counts(tmp_path: Path) -> None:
    gpu.write_config(tmp_path, tiny=True)
    model = gpu.build(tmp_path, torch.device("cpu"), torch.float32)
    lengths, head = [32, 96], torch.arange(64)
    positions = torch.cat([torch.arange(n) for n in lengths])
    with FlopCounterMode(display=False) as counter:
        model.logits(positions, positions, AttentionLayout.of_lengths(lengths, [FULL] * 2), head)
    scores = 4 * 2 * 64 * (32**2 + 96**2)
    counted = counter.get_total_flops()
    assert SHAPE.flops(lengths, 64) in (counted, counted + scores), "scores may go uncounted"
    matrices = [p.numel() for n, p in model.network.named_parameters() if "proj" in n]
    head_size = model.network.lm_head.weight.numel()
    assert SHAPE.step_bytes(64) == 4 * (sum(matrices) + head_size + 64 * 997)


def test_a_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    ceilings = gpu.Ceilings(100.0, 10.0)
    assert ceilings.floor_s(1000, 50) == 10.0
    assert ceilings.floor_s(1000, 500) == 50.0


def test_llada_8b_has_its_size() -> None:
    sizes = gpu._LLADA
    shape = gpu.Shape(
        sizes["d_model"], sizes["mlp_hidden_size"], sizes["n_layers"], 32, sizes["vocab_size"], 2
    )
    embedded = shape.layers * shape.layer_weights + 2 * shape.hidden * shape.vocab
    assert embedded / 1e9 == pytest.approx(8.02, abs=0.01)  # docs/gpu.md


def test_a_tiny_run_measures_every_case_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--rounds", "1", "--json", str(file)]
    )
    gpu.main()
    told = json.loads(file.read_text())
    assert [(row["rows"], row["canvas"], row["attention"]) for row in told["rows"]] == [
        (1, 64, "sdpa"),
        (2, 64, "sdpa"),
    ]
    assert all(row["step/floor"] > 0 for row in told["rows"])
    (ours,) = told["loops"]
    assert (ours["loop"], ours["tokens"], ours["forwards"]) == ("vdiff-grpc", 32, 32)
    assert "without varlen: it needs a CUDA device" in capsys.readouterr().out
    assert told["skipped"] == "no checkout is given (--fast-dllm PATH)"
