"""Counter-based noise: a function of its key, and distributed as it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdiff_grpc.engine import rng
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows, Purpose

CPU = torch.device("cpu")


def rows(count: int, seed: int = 1, step: int = 0, first: int = 0) -> NoiseRows:
    return NoiseRows(
        np.full(count, seed, dtype=np.uint64),
        np.full(count, step, dtype=np.int64),
        np.arange(first, first + count, dtype=np.int64),
    )


def test_a_positions_noise_does_not_depend_on_the_others() -> None:
    noise = CounterNoise()
    together = noise.token_exponentials(rows(64), 100, CPU)
    alone = noise.token_exponentials(rows(1, first=17), 100, CPU)
    assert torch.equal(together[17], alone[0])
    wider = noise.token_exponentials(rows(64), 150, CPU)
    assert torch.equal(wider[:, :100], together)


def test_every_part_of_the_address_changes_the_noise() -> None:
    base = rows(1).keys(Purpose.TOKEN)
    others = [
        rows(1, seed=2).keys(Purpose.TOKEN),
        rows(1, step=1).keys(Purpose.TOKEN),
        rows(1, first=1).keys(Purpose.TOKEN),
        rows(1).keys(Purpose.ORDER),
    ]
    assert all(base[0] != other[0] for other in others)
    large = NoiseRows(np.array([2**64 - 1], dtype=np.uint64), np.array([2**40]), np.array([2**31]))
    assert large.keys(Purpose.TOKEN)[0] != base[0]


def test_draws_are_exponential_and_finite() -> None:
    """Mean and variance of Exp(1) over a million draws lie within five standard errors.

    Standard errors: 1/1000 for the mean; the variance's is sqrt(8)/1000.
    """
    draws = CounterNoise().token_exponentials(rows(1000, seed=3), 1000, CPU).double()
    assert torch.isfinite(draws).all()
    assert (draws > 0).all()
    assert abs(draws.mean() - 1) < 5e-3
    assert abs(draws.var() - 1) < 5 * 8**0.5 / 1000


def test_the_highest_hash_is_finite_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 rounds the highest of 2^32 hashes up to 1, whose logarithm would be infinite."""
    monkeypatch.setattr(rng, "_lowbias32_", lambda x: x.fill_(-1))
    drawn = CounterNoise().token_exponentials(rows(2), 3, CPU)
    assert torch.isfinite(drawn).all()
    monkeypatch.setattr(rng, "_lowbias32_", lambda x: x.fill_(0))
    assert (CounterNoise().token_exponentials(rows(2), 3, CPU) > 0).all()


def test_gumbel_argmax_follows_the_softmax() -> None:
    """20,000 draws over five tokens: each share within five standard deviations."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    expected = logits.softmax(0)
    count = 20_000
    noise = CounterNoise().token_exponentials(rows(count, seed=11), 5, CPU)
    drawn = (logits - noise.log()).argmax(1).bincount(minlength=5) / count
    bound = 5 * (expected * (1 - expected) / count).sqrt()
    assert (abs(drawn - expected) < bound).all()


def test_neighbouring_positions_and_tokens_are_uncorrelated() -> None:
    """Correlation of 10^6 pairs is below five standard errors (5e-3)."""
    draws = CounterNoise().token_exponentials(rows(1001, seed=5), 1001, CPU).double()
    for a, b in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        pair = torch.stack([a.flatten(), b.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 5e-3


def test_order_noise_is_uniform() -> None:
    """Mean of 10^5 uniforms within five standard errors (5 * 0.2887 / 316)."""
    drawn = CounterNoise().order_uniforms(rows(100_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 5e-3
