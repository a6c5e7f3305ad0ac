"""Backends of attention against each other, on random packed layouts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.engine.tools import GOLDEN, tiny_engine
from vdiff_grpc.engine.kernels import flex, registry, sdpa, varlen
from vdiff_grpc.engine.kernels.masks import CAUSAL, FULL, MaskRule, block_causal, mask_of, shadow
from vdiff_grpc.engine.kernels.registry import Place, attend, choose
from vdiff_grpc.engine.kernels.segments import Segments
from vdiff_grpc.errors import CheckpointError

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
WINDOWS = [None, 1, 7, 200]


def random_segments(seed: int, **more: Any) -> Segments:
    """Every rule, with and without kept keys, in any order; some neighbours alike."""
    rng = random.Random(seed)
    shapes: list[tuple[MaskRule, int, int]] = []
    for _ in range(rng.randint(1, 9)):
        num_q = rng.choice([1, 2, 5, 16, 33, 140])
        rule = rng.choice([FULL, CAUSAL, block_causal(4), block_causal(7), shadow((0, 1))])
        if rule.shadowed:
            num_q += len(rule.shadowed) + 1
        kept = 0 if rule.shadowed else rng.choice([0, 0, 3, 28, 150])
        shapes += [(rule, num_q, num_q + kept)] * rng.choice([1, 1, 3])
    cu_q, cu_k = [0], [0]
    for _, num_q, num_k in shapes:
        cu_q.append(cu_q[-1] + num_q)
        cu_k.append(cu_k[-1] + num_k)
    return Segments(tuple(cu_q), tuple(cu_k), tuple(rule for rule, *_ in shapes), **more)


def random_tensors(segments: Segments, kv_heads: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, heads, 8, generator=generator)
        for count, heads in (
            (segments.cu_q[-1], 4),
            (segments.cu_k[-1], kv_heads),
            (segments.cu_k[-1], kv_heads),
        )
    ]


def packed_mask(segments: Segments, window: int | None) -> torch.Tensor:
    """[num_q, num_k] of the whole layout."""
    masks = [
        mask_of(*segments.shape(i), window=window)  # type: ignore[misc]
        for i in range(len(segments.rules))
    ]
    return torch.block_diag(*(mask.float() for mask in masks)).bool()


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The textbook's attention in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).float()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["sdpa", "flex"])
def test_a_backend_computes_what_the_masks_say(name: str, seed: int) -> None:
    window, kv_heads = WINDOWS[seed % 4], [1, 2, 4][seed % 3]
    segments = random_segments(seed, merge=seed % 2 == 0)
    q, k, v = random_tensors(segments, kv_heads, seed)
    found = registry.BACKENDS[name].attend(q, k, v, segments, 0.3, window)
    torch.testing.assert_close(
        found, by_hand(q, k, v, packed_mask(segments, window), 0.3), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("seed", range(12))
def test_flex_looks_at_every_block_in_which_there_is_something_to_see(seed: int) -> None:
    """Its uncompiled form, which the CPU runs, looks at all of them."""
    segments = random_segments(seed)
    found = flex.block_mask(segments, WINDOWS[seed % 4], CPU)
    q, k = packed_mask(segments, WINDOWS[seed % 4]).nonzero().unbind(1)
    listed = found.to_dense()[0, 0].bool()
    assert listed[q // 128, k // 128].all()
    assert int(listed.sum()) == int(found.kv_num_blocks.sum())


@pytest.mark.parametrize("rule", [FULL, CAUSAL, block_causal(4), shadow((1, 2))])
def test_varlen_is_told_what_the_mask_says(rule: MaskRule) -> None:
    """FlashAttention's own terms: of a query at place p, keys p - left to p + right."""
    taken = 0
    for num_k in range(3, 13):
        for num_q in range(3, num_k + 1):
            if not varlen.takes(rule, num_q, num_k):
                continue
            taken += 1
            for window in (None, 1, 3, 20):
                left, right = (num_k if n < 0 else n for n in varlen.window_of(rule, window))
                place = torch.arange(num_k - num_q, num_k).unsqueeze(1)
                key = torch.arange(num_k).unsqueeze(0)
                told = (key >= place - left) & (key <= place + right)
                assert torch.equal(told, mask_of(rule, num_q, num_k, window))
    assert bool(taken) == (not rule.shadowed)


def test_each_segment_has_the_first_backend_that_takes_it_whatever_its_company() -> None:
    """varlen itself runs on a GPU only: what it would be given, and by whom the rest is computed."""
    segments = Segments(
        (0, 4, 8, 14, 18),
        (0, 4, 12, 18, 22),
        (FULL, block_causal(4), shadow((0, 1)), FULL),
        backends=("varlen",),
    )
    parts = registry._parts(segments)
    assert [(name, q.start, q.stop, k.start, k.stop) for name, q, k, _ in parts] == [
        ("varlen", 0, 8, 0, 12),
        ("sdpa", 8, 14, 12, 18),
        ("varlen", 14, 18, 18, 22),
    ]
    assert parts[0][3].cu_k == (0, 4, 12)
    assert parts[2][3].rules == (FULL,)


def test_parts_by_several_backends_lie_in_the_segments_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flex, "takes", lambda rule, num_q, num_k: num_k > num_q)
    segments = random_segments(5, backends=("flex",))
    assert len(registry._parts(segments)) > 2
    q, k, v = random_tensors(segments, 2, 5)
    expected = sdpa.attend(q, k, v, segments, None, None)
    torch.testing.assert_close(
        attend(q, k, v, segments, None, None), expected, atol=1e-5, rtol=1e-5
    )


def place(**other: Any) -> Place:
    given = {"device": CPU, "dtype": torch.float32, "heads": 4, "kv_heads": 2, "head_dim": 16}
    return Place(**(given | other))


def test_the_cpu_has_sdpa() -> None:
    assert choose("auto", place()) == choose("sdpa", place()) == ("sdpa",)


@pytest.mark.parametrize(
    ("wanted", "where", "reason"),
    [
        ("varlen", {}, "needs a CUDA device, not cpu"),
        ("flex", {}, "needs a CUDA device, not cpu"),
        ("varlen", {"device": torch.device("cuda")}, "not torch.float32"),
        (
            "varlen",
            {"device": torch.device("cuda"), "dtype": torch.bfloat16, "head_dim": 12},
            "heads have 12 numbers",
        ),
        ("flex", {"device": torch.device("cuda"), "batch_invariant": True}, "batch_invariant"),
    ],
)
def test_a_backend_that_cannot_work_is_refused(
    wanted: str, where: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        choose(wanted, place(**where))


def test_a_trial_finds_a_backend_that_computes_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert registry._trial("flex", place()) == ""
    monkeypatch.setattr(flex, "attend", lambda *given: sdpa.attend(*given) * 1.2)
    assert "differ from sdpa's by" in registry._trial("flex", place())
    monkeypatch.setattr(flex, "attend", lambda *given: 1 / 0)
    assert registry._trial("flex", place()) == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [("tiny-llada", "needs a CUDA device"), ("tiny-diffusion-gemma", "computed one by one")],
)
def test_an_engine_does_not_start_with_a_backend_that_cannot_work(
    checkpoint: str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"attention 'flex' cannot be used here: .*{reason}"):
        tiny_engine(GOLDEN / checkpoint, attention="flex")


def test_an_engine_says_what_computes_its_attention(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = tiny_engine()
    assert "attention on cpu: sdpa" in caplog.messages
    assert engine.runner.fill.backends == ("sdpa",)
