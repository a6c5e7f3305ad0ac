"""Dream and SDAR against their published modelling code: logits of whole canvases, packed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.tools import GOLDEN
from vdiff_grpc.engine.attention import CAUSAL, FULL, AttentionLayout, MaskRule, block_causal
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.strategies import DreamSchedule, DynamicThreshold
from vdiff_grpc.engine.types import AttentionPattern


def recorded(checkpoint: str, file: str) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Canvas, logits and block length (0: none) of every recorded pass."""
    tensors = load_file(GOLDEN / file)
    names = sorted({n.rpartition(".")[0] for n in tensors if n.startswith(f"{checkpoint}.")})
    assert names
    return [
        (
            tensors[f"{name}.ids"],
            tensors[f"{name}.logits"],
            int(tensors.get(f"{name}.block", torch.tensor(0))),
        )
        for name in names
    ]


def packed_logits(
    model: loader.LoadedModel, rows: list[torch.Tensor], rules: list[MaskRule]
) -> list[torch.Tensor]:
    lengths = [len(row) for row in rows]
    logits = model.logits(
        torch.cat(rows),
        torch.cat([torch.arange(length) for length in lengths]),
        AttentionLayout.of_lengths(lengths, rules),
        torch.arange(sum(lengths)),
    )
    return list(logits.split(lengths))


@pytest.mark.parametrize(
    ("checkpoint", "file"),
    [("tiny-dream", "dream_logits.safetensors"), ("tiny-sdar", "sdar_logits.safetensors")],
)
def test_logits_equal_the_reference_modelling_code(checkpoint: str, file: str) -> None:
    model = loader.load(str(GOLDEN / checkpoint), "cpu", "float32")
    cases = recorded(checkpoint, file)
    rules = [block_causal(block) if block else FULL for _, _, block in cases]
    ours = packed_logits(model, [ids for ids, _, _ in cases], rules)
    for row, (_, expected, _) in zip(ours, cases, strict=True):
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


def test_sdar_without_its_blocks_is_another_model() -> None:
    model = loader.load(str(GOLDEN / "tiny-sdar"), "cpu", "float32")
    cases = recorded("tiny-sdar", "sdar_logits.safetensors")
    ids, expected, _ = max(cases, key=lambda case: len(case[0]))
    for rule in (FULL, CAUSAL, block_causal(8)):
        [ours] = packed_logits(model, [ids], [rule])
        assert (ours - expected).abs().max() > 0.1


def test_what_the_configs_say() -> None:
    dream, sdar = (describe(str(GOLDEN / name)) for name in ("tiny-dream", "tiny-sdar"))
    assert (dream.family, dream.shift, dream.block_length) == ("dream", 1, None)
    assert (dream.attention, dream.supports_infill) == (AttentionPattern.FULL, True)
    assert (dream.mask_token_id, dream.end_token_ids) == (96, (95,))
    assert (dream.default_strategy, "wino" in dream.strategies) == (DreamSchedule(), False)
    assert (sdar.family, sdar.shift, sdar.block_length) == ("sdar", 0, 4)
    assert (sdar.attention, sdar.supports_infill) == (AttentionPattern.BLOCK_CAUSAL, False)
    assert (sdar.mask_token_id, sdar.end_token_ids) == (96, (94, 95))
    assert (sdar.default_strategy, sdar.default_temperature) == (DynamicThreshold(), 0.6)
    assert not {"wino", "remdm"} & set(sdar.strategies)
