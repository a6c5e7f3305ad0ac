"""A mixture of experts keeps the promise: a row's logits are the same bits in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ExpertsInterface

from tests.engine.test_company import check_company
from tests.engine.tools import GOLDEN, LogitsRecorder, add, run_all, tiny_engine
from vdiff_grpc.engine.attention import FULL, AttentionLayout, block_causal
from vdiff_grpc.engine.exact import whole_rows
from vdiff_grpc.engine.models import experts, loader
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import DynamicThreshold, Editing, FixedSchedule
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

CHECKPOINTS = ["tiny-llada-moe", "tiny-llada2"]
RULES = {"tiny-llada-moe": FULL, "tiny-llada2": block_causal(8)}


def canvases(count: int, seed: int) -> list[torch.Tensor]:
    """Of lengths from 1 to 40, some of it masked."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(1, 41, (1,), generator=generator))
        ids = torch.randint(0, 94, (length,), generator=generator)
        ids[torch.rand(length, generator=generator) < 0.5] = 96
        made.append(ids)
    return made


def packed_logits(
    model: loader.LoadedModel, rows: list[torch.Tensor], rule: Any
) -> list[torch.Tensor]:
    """Each row's logits, computed together with filler up to whole rows."""
    lengths = [len(row) for row in rows]
    rest = whole_rows(sum(lengths)) - sum(lengths)
    if rest:
        rows, lengths = [*rows, torch.full((rest,), 96)], [*lengths, rest]
    logits = model.logits(
        torch.cat(rows),
        torch.cat([torch.arange(length) for length in lengths]),
        AttentionLayout.of_lengths(lengths, [rule] * len(rows)),
        torch.arange(sum(lengths)),
    )
    return list(logits.split(lengths))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_row_has_the_same_bits_alone_and_among_one_to_forty_others(checkpoint: str) -> None:
    model = loader.load(str(GOLDEN / checkpoint), "cpu", "float32")
    rule = RULES[checkpoint]
    for seed, row in enumerate(canvases(4, seed=1)):
        alone = packed_logits(model, [row], rule)[0]
        for others in (*range(1, 12), 17, 25, 33, 40):
            company = canvases(others, seed=100 * seed + others)
            place = others // 2
            together = packed_logits(model, [*company[:place], row, *company[place:]], rule)
            assert torch.equal(together[place], alone), f"row {seed} among {others}"


def test_a_request_gives_the_same_logits_in_company() -> None:
    check_company(2, path=GOLDEN / "tiny-llada-moe")


def test_a_block_causal_request_with_its_cache_gives_the_same_logits_in_company() -> None:
    strategies = (DynamicThreshold(0.5), Editing(0.5, 0.3, 4), FixedSchedule())
    requests = [
        Request(
            TokensPrompt(tuple(range(1, 2 + 5 * i % 31))),
            RequestParams(
                max_new_tokens=9 + 4 * i,
                temperature=(0.0, 1.0)[i % 2],
                cfg_scale=(0.0, 0.0, 1.5)[i % 3],
                seed=i,
                strategy=strategies[i % 3],
            ),
            granularity=Granularity.STEPS,
        )
        for i in range(9)
    ]
    engine = tiny_engine(GOLDEN / "tiny-llada2")
    recorder = LogitsRecorder.install(engine)
    alone = {}
    for key, request in enumerate(requests):
        add(engine, key, request)
        alone[key] = run_all(engine)[key][:-1]
    logits_alone = dict(recorder.seen)
    recorder.seen.clear()
    for key, request in enumerate(requests):
        add(engine, key, request)
    together = run_all(engine)
    for key, events in alone.items():
        assert together[key][:-1] == events
    for row, expected in logits_alone.items():
        for step, (a, b) in enumerate(zip(expected, recorder.seen[row], strict=True)):
            assert torch.equal(a, b), f"row {row}, step {step}"


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_loader_asks_for_them(checkpoint: str) -> None:
    model = loader.load(str(GOLDEN / checkpoint), "cpu", "float32")
    assert model.network.config._experts_implementation == experts.BACKEND  # type: ignore[union-attr]


class Collection(nn.Module):
    """Experts as transformers packs them, with or without gate, bias and transposed weights."""

    def __init__(self, *, has_gate: bool, has_bias: bool, is_transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.num_experts, hidden, inner = 5, 12, 8
        self.has_gate, self.has_bias, self.is_transposed = has_gate, has_bias, is_transposed
        self.has_post_expert_norm = self._is_expert_parallel = False
        self.act_fn = ACT2FN["silu"]
        first = ("gate_up_proj", 2 * inner) if has_gate else ("up_proj", inner)
        for name, out, into in ((*first, hidden), ("down_proj", hidden, inner)):
            shape = (into, out) if is_transposed else (out, into)
            weight = torch.randn(self.num_experts, *shape, generator=generator)
            self.register_buffer(name, weight)
            self.register_buffer(
                f"{name}_bias", torch.randn(self.num_experts, out, generator=generator)
            )

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_every_kind_of_experts_gives_what_transformers_gives(
    has_gate: bool, has_bias: bool, is_transposed: bool
) -> None:
    module = Collection(has_gate=has_gate, has_bias=has_bias, is_transposed=is_transposed)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(37, 12, generator=generator)
    weights, index = torch.rand(37, 5, generator=generator).topk(3)
    expected = ExpertsInterface()["batched_mm"](module, hidden, index, weights)
    ours = experts.exact_experts(module, hidden, index, weights)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_the_order_in_which_experts_are_named_is_of_no_matter() -> None:
    module = Collection(has_gate=True, has_bias=False, is_transposed=False)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(32, 12, generator=generator)
    weights, index = torch.rand(32, 5, generator=generator).topk(4)
    ours = experts.exact_experts(module, hidden, index, weights)
    turned = experts.exact_experts(module, hidden, index.flip(-1), weights.flip(-1))
    assert torch.equal(ours, turned)


def test_tensors_that_one_expert_lacks_are_named() -> None:
    keys = [f"model.layers.0.mlp.experts.{n}.{p}.weight" for n in range(12) for p in "abc"]
    keys += ["model.layers.1.mlp.experts.0.a.weight", "model.layers.0.mlp.gate.weight"]
    assert experts.missing_keys(keys) == []
    lacking = "model.layers.0.mlp.experts.10.b.weight"
    assert experts.missing_keys(k for k in keys if k != lacking) == [lacking]


def test_tiles_give_what_whole_groups_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes tiles of one shape; here they are made of what a CPU computes at once."""
    module = Collection(has_gate=True, has_bias=True, is_transposed=False)
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(100, 12, generator=generator)
    weights, index = torch.rand(100, 5, generator=generator).topk(3)
    expected = experts.exact_experts(module, hidden, index, weights)
    monkeypatch.setattr(
        experts,
        "_pieces",
        lambda begin, end, _: [(i, min(i + 16, end)) for i in range(begin, end, 16)],
    )
    ours = experts.exact_experts(module, hidden, index, weights)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
