"""EB against two published implementations, and what it does where they have nothing to say."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tools import GOLDEN, finished, run, same_in_company, tiny_engine, trajectory
from vdiff_grpc.engine.decoding.entropy_bound import EntropyBoundRule
from vdiff_grpc.engine.decoding.rule import Action, Candidates, Group
from vdiff_grpc.engine.decoding.stages import entropy
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import ConfidenceThreshold, EntropyBound
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

CASES = [
    pytest.param(case, id=case["id"])
    for case in json.loads((GOLDEN / "entropy_bound.json").read_text())["cases"]
]


class DrawnTokens(CounterNoise):
    """Noise that makes the recorded tokens win: the reference's own draw is not recorded."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._drawn = [dict(step) for step in case["drawn"]]

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        exponentials = torch.ones(len(rows.steps), vocab_size)
        for i, (step, position) in enumerate(zip(rows.steps, rows.positions, strict=True)):
            exponentials[i, self._drawn[step][position]] = 1e-38
        return exponentials.to(device)


def params(case: dict[str, Any]) -> RequestParams:
    given = case["params"]
    bound = given["gamma"] if case["by"] == "pc-sampler" else given["entropy_bound"]
    return RequestParams(
        max_new_tokens=given["gen_length"],
        block_length=given["block_length"],
        temperature=given["temperature"],
        cfg_scale=given["cfg_scale"],
        seed=0,
        strategy=EntropyBound(bound),
    )


@pytest.mark.parametrize("case", CASES)
def test_it_fills_what_the_published_samplers_fill(case: dict[str, Any]) -> None:
    noise = DrawnTokens(case) if "drawn" in case else None
    engine = tiny_engine(GOLDEN / case["checkpoint"], noise=noise, early_end=False)
    events = run(engine, Request(TokensPrompt(tuple(case["prompt"])), params(case)))
    ours, theirs = trajectory(events), case["steps"]
    assert [[(p, t) for p, t, _ in step] for step in ours] == [
        [(p, t) for p, t, _ in step] for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    assert list(finished(events).outputs[0].canvas) == case["final"]


def test_there_are_recorded_steps_of_one_and_of_many_positions() -> None:
    sizes = {len(step) for case in CASES for step in case.values[0]["steps"]}
    assert {1, 2, 3, 4} <= sizes
    assert len(CASES) >= 12


def select(logits: torch.Tensor, segments: list[int], bounds: list[float]) -> list[int]:
    """What the rule does with these logits; the rows are of no interest to it."""
    count = len(logits)
    zeros = torch.zeros(count, dtype=torch.int64)
    candidates = Candidates(
        logits=logits,
        normaliser=logits.logsumexp(-1),
        token_ids=logits.argmax(-1),
        confidence=logits.softmax(-1).amax(-1),
        order=torch.zeros(count),
        status=zeros,
        current=zeros,
        positions=torch.arange(count),
        variants=zeros,
        entropy=entropy(logits),
    )
    group = Group((), torch.tensor(segments), torch.tensor(bounds).unsqueeze(1))
    return EntropyBoundRule().select(group, candidates).tolist()


def with_entropy(*nats: float) -> torch.Tensor:
    """[len(nats), 2] logits of two outcomes with these entropies (below ln 2)."""
    probabilities = torch.linspace(0.5, 1 - 1e-6, 200001, dtype=torch.float64)
    pairs = torch.stack([probabilities, 1 - probabilities], dim=1)
    known = -(pairs * pairs.log()).sum(-1)
    return torch.stack([pairs[(known - h).abs().argmin()].log().float() for h in nats])


def test_the_largest_entropy_is_not_counted() -> None:
    logits = with_entropy(0.5, 0.1, 0.3)
    taken = {bound: select(logits, [0, 0, 0], [bound]) for bound in (0.0, 0.09, 0.11, 0.39, 0.41)}
    unmask, keep = Action.UNMASK, Action.KEEP
    assert taken[0.0] == taken[0.09] == [keep, unmask, keep]
    assert taken[0.11] == taken[0.39] == [keep, unmask, unmask]
    assert taken[0.41] == [unmask, unmask, unmask]


def test_a_row_has_its_own_bound_and_its_own_sums() -> None:
    logits = with_entropy(0.3, 0.3, 0.3, 0.2, 0.2, 0.2)
    taken = select(logits, [0, 0, 0, 1, 1, 1], [0.31, 0.1])
    assert taken == [1, 1, 0, 1, 0, 0], "ties go to the lower position"


def test_a_banned_token_leaves_no_certainty_behind() -> None:
    """Without its banned favourite a position is uncertain, however small what is left."""
    logits = torch.zeros(2, 8)
    logits[0, 3] = 20.0  # nearly all of the probability
    logits[1, 2] = 3.0
    logits[:, 3] = -torch.inf  # banned
    assert entropy(logits)[0].item() == pytest.approx(math.log(7))
    assert select(logits, [0, 0], [0.1]) == [Action.KEEP, Action.UNMASK]


def test_a_candidate_has_the_same_entropy_alone_and_among_others() -> None:
    torch.manual_seed(0)
    logits = torch.randn(37, 33027)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        among = entropy(logits)
        for begin, end in ((1, 2), (36, 37), (20, 37), (3, 35)):
            assert torch.equal(entropy(logits[begin:end]), among[begin:end])
    finally:
        torch.set_num_threads(threads)


def requests() -> list[Request]:
    """Bounds, temperatures, guidance, an infill, and another strategy between them."""
    prompt = tuple(range(5, 14))
    plain = RequestParams(max_new_tokens=18, block_length=6, seed=3, ignore_eos=True)
    strategies = [EntropyBound(0.2), ConfidenceThreshold(0.5), EntropyBound(2.0)]
    found = [
        Request(
            TokensPrompt(prompt[i:]),
            dataclasses.replace(plain, strategy=strategy, temperature=heat, cfg_scale=scale),
        )
        for i, (strategy, heat, scale) in enumerate(
            (s, t, c) for s in strategies for t in (0.0, 1.0) for c in (0.0, 1.5)
        )
        if i < len(prompt)
    ]
    infill = InfillPrompt((prompt, Hole(5), (3, 4), Hole(3), (9,)))
    found.append(Request(infill, RequestParams(block_length=4, seed=1, strategy=EntropyBound(0.5))))
    return [dataclasses.replace(r, granularity=Granularity.STEPS) for r in found]


def test_alone_and_in_company_are_the_same() -> None:
    engine = tiny_engine()
    same_in_company(engine, requests())


def test_frozen_positions_stay_and_every_hole_is_filled() -> None:
    engine = tiny_engine()
    request = requests()[-1]
    canvas = finished(run(engine, request)).outputs[0].canvas
    assert canvas[:9] == tuple(range(5, 14))
    assert canvas[14:16] == (3, 4)
    assert canvas[19:] == (9,)
    assert engine.info.mask_token_id not in canvas


def test_a_large_bound_fills_a_block_at_once_and_none_one_position_at_a_time() -> None:
    engine = tiny_engine(early_end=False)
    steps = {}
    for bound in (0.0, 1000.0):
        asked = RequestParams(max_new_tokens=12, block_length=4, strategy=EntropyBound(bound))
        steps[bound] = trajectory(run(engine, Request(TokensPrompt((1, 2)), asked)))
    assert [len(step) for step in steps[0.0]] == [1] * 12
    assert [len(step) for step in steps[1000.0]] == [4, 4, 4]
    assert np.unique([p for step in steps[1000.0] for p, *_ in step]).tolist() == list(range(2, 14))
