"""APD on the tiny Dream checkpoint with a tiny causal model beside it, and left to right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine.tools import GOLDEN, add, finished, run, run_all, tiny_engine, trajectory
from vdiff_grpc.engine.attention import CAUSAL, AttentionLayout
from vdiff_grpc.engine.auxiliary import Auxiliary
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import (
    AdaptiveParallel,
    ConfidenceThreshold,
    LeftToRight,
    Strategy,
)
from vdiff_grpc.engine.types import Granularity, Request, RequestParams

DREAM, CAUSAL_LM = GOLDEN / "tiny-dream", GOLDEN / "tiny-causal"
CASES = json.loads((GOLDEN / "apd_generate.json").read_text())["cases"]
# the two models hardly agree on any other text
PROMPTS = list(dict.fromkeys(tuple(case["prompt"]) for case in CASES))[:6]


def apd_engine(**more: Any) -> Engine:
    return tiny_engine(DREAM, early_end=False, aux_model_path=str(CAUSAL_LM), **more)


def request(prompt: tuple[int, ...], strategy: Strategy, num_new: int = 24, **more: Any) -> Request:
    more.setdefault("block_length", num_new)
    params = RequestParams(max_new_tokens=num_new, strategy=strategy, **more)
    return Request(TokensPrompt(prompt), params, granularity=Granularity.STEPS)


def told_of(engine: Engine, requests: list[Request]) -> list[list[Event]]:
    """Every request's events, all served at once."""
    for key, each in enumerate(requests):
        add(engine, key, each)
    events = run_all(engine)
    return [events[key] for key in range(len(requests))]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_apd_accepts_what_the_published_code_accepts(case: dict[str, Any]) -> None:
    """Up to the first step in which the models part at the cursor: there our token is y."""
    given = case["params"]
    strategy = AdaptiveParallel(given["apd_mixture_weight"], given["max_lookahead"])
    ours = trajectory(run(apd_engine(), request(tuple(case["prompt"]), strategy)))
    theirs = case["steps"]
    parted = [step for step, (x, y) in enumerate(case["first"]) if x != y]
    same = parted[0] if parted else len(theirs)
    assert bool(parted) == case["id"].endswith("differs")
    assert [[(p, t) for p, t, _ in step] for step in ours[:same]] == [
        [(p, t) for p, t, _ in step] for step in theirs[:same]
    ]
    for step, expected in zip(ours[:same], theirs[:same], strict=True):
        assert [c for *_, c in step] == pytest.approx([c for *_, c in expected], abs=1e-4)
    if parted:
        cursor, y = theirs[same][0][0], case["first"][same][1]
        assert [(p, t) for p, t, _ in ours[same]] == [(cursor, y)]
    else:
        assert len(ours) == len(theirs)


def test_the_recorded_runs_accept_some_proposals_and_refuse_others() -> None:
    sizes = [len(step) for case in CASES for step in case["steps"]]
    assert len(CASES) >= 8
    assert sizes.count(1) > 20
    assert sum(size > 1 for size in sizes) > 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8, "top_k": 7}])
def test_with_mixture_one_every_proposal_is_accepted(
    temperature: float, filters: dict[str, Any]
) -> None:
    engine = apd_engine()
    given = {"temperature": temperature, "seed": 11, **filters}

    def told(strategy: Strategy) -> list[list[Event]]:
        return told_of(engine, [request(prompt, strategy, **given) for prompt in PROMPTS])

    for events in told(AdaptiveParallel(1.0, 7)):
        assert [len(step) for step in trajectory(events)] == [7, 7, 7, 3]
    whole, at_once = told(AdaptiveParallel(1.0, 24)), told(ConfidenceThreshold(1e-9))
    assert [trajectory(events) for events in whole] == [trajectory(events) for events in at_once]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 5}])
def test_with_mixture_zero_the_text_is_the_auxiliary_models_own(
    temperature: float, filters: dict[str, Any]
) -> None:
    given = [
        (prompt, {"temperature": temperature, "seed": seed, **filters})
        for seed, prompt in enumerate(PROMPTS)
    ]
    alone = tiny_engine(CAUSAL_LM, early_end=False)
    theirs = told_of(
        alone, [request(p, LeftToRight(), block_length=None, **more) for p, more in given]
    )
    expected = [finished(events).outputs[0].canvas for events in theirs]
    assert all(len(trajectory(events)) == 24 for events in theirs)
    beside = apd_engine()
    for lookahead in (1, 5, 100):
        strategy = AdaptiveParallel(0.0, lookahead)
        ours = told_of(beside, [request(p, strategy, **more) for p, more in given])
        assert [finished(events).outputs[0].canvas for events in ours] == expected
        steps = sum(len(trajectory(events)) for events in ours)
        assert steps < 24 * len(PROMPTS) or lookahead == 1, "no proposal was accepted"


@pytest.mark.parametrize("model", ["tiny-llada", "tiny-sdar"])
def test_the_auxiliary_model_writes_the_same_beside_any_diffusion_model(model: str) -> None:
    more: dict[str, Any] = {"temperature": 0.6, "seed": 4, "block_length": None}
    beside = tiny_engine(GOLDEN / model, early_end=False, aux_model_path=str(CAUSAL_LM))
    alone = tiny_engine(CAUSAL_LM, early_end=False)
    for prompt in PROMPTS[:2]:
        ours = run(beside, request(prompt, AdaptiveParallel(0.0, 6), **more))
        theirs = run(alone, request(prompt, LeftToRight(), **more))
        canvas = finished(theirs).outputs[0].canvas
        # block-causal: the canvas goes on to a whole block
        assert finished(ours).outputs[0].canvas[: len(canvas)] == canvas


def test_a_mixture_between_follows_both_models() -> None:
    requests = [
        request(PROMPTS[0], AdaptiveParallel(mixture, 24), temperature=1.0)
        for mixture in (0.0, 0.5, 1.0)
    ]
    told = told_of(apd_engine(), requests)
    assert len({finished(events).outputs[0].canvas for events in told}) == 3


def test_it_gives_the_same_events_alone_and_in_company() -> None:
    engine = apd_engine()
    requests = [
        request(PROMPTS[0], AdaptiveParallel(0.7, 24), temperature=0.7, seed=1),
        request(PROMPTS[1], AdaptiveParallel(0.3, 5), num_new=17, temperature=1.0, seed=2),
        request(PROMPTS[2], AdaptiveParallel(0.5, 9), block_length=6, seed=3),
        request(PROMPTS[0], AdaptiveParallel(0.8, 6), temperature=0.5, cfg_scale=1.0, seed=4),
        request(PROMPTS[2], LeftToRight(), num_new=9, temperature=1.0, seed=5),
        request(PROMPTS[1], ConfidenceThreshold(0.5), temperature=1.0, seed=6),
        _infill(AdaptiveParallel(0.4, 20)),
    ]
    alone = [run(engine, given)[:-1] for given in requests]
    for key, given in enumerate(requests):
        add(engine, key, given)
    together = run_all(engine)
    for key, expected in enumerate(alone):
        assert together[key][:-1] == expected


def _infill(strategy: Strategy, **more: Any) -> Request:
    prompt = InfillPrompt(((3, 1, 4), Hole(6), (15, 9, 2), Hole(5), (6, 5)))
    params = RequestParams(strategy=strategy, block_length=11, **more)
    return Request(prompt, params, granularity=Granularity.STEPS)


@pytest.mark.parametrize("lookahead", [2, 100])
def test_frozen_text_in_the_window_is_read_by_the_auxiliary_model_and_kept(lookahead: int) -> None:
    events = run(apd_engine(), _infill(AdaptiveParallel(0.0, lookahead)))
    canvas = list(finished(events).outputs[0].canvas)
    assert canvas[9:12] == [15, 9, 2]
    assert canvas[17:] == [6, 5]
    holes = [*range(3, 9), *range(12, 17)]
    model = loader.load(str(CAUSAL_LM), "cpu", "float32")
    layout = AttentionLayout.of_lengths([len(canvas)], [CAUSAL])
    everywhere = torch.arange(len(canvas))
    logits = model.logits(torch.tensor(canvas), everywhere, layout, everywhere)
    expected = logits[:, :94].argmax(dim=-1).tolist()  # no end token before frozen text
    assert [canvas[p] for p in holes] == [expected[p - 1] for p in holes]


def test_left_to_right_on_a_causal_model_is_what_transformers_generates() -> None:
    cases = json.loads((GOLDEN / "causal_generate.json").read_text())["cases"]
    for stops in (False, True):
        chosen = [c for c in cases if (c["params"]["eos_token_id"] is not None) == stops]
        assert chosen
        requests = [
            request(
                tuple(c["prompt"]), LeftToRight(), c["params"]["max_new_tokens"], block_length=None
            )
            for c in chosen
        ]
        told = told_of(tiny_engine(CAUSAL_LM, early_end=stops), requests)
        for case, events in zip(chosen, told, strict=True):
            ours = [line for step in trajectory(events) for line in step]
            theirs = [line for step in case["steps"] for line in step]
            assert [line[:2] for line in ours] == [(p, t) for p, t, _ in theirs]
            assert [c for *_, c in ours] == pytest.approx([c for *_, c in theirs], abs=1e-4)


def test_left_to_right_fills_any_canvas_in_order() -> None:
    given = [
        request(PROMPTS[0], LeftToRight(), num_new=9, block_length=4, temperature=0.7, seed=2),
        request(PROMPTS[0], LeftToRight(), num_new=9, cfg_scale=1.0),
        _infill(LeftToRight()),
    ]
    for each in given:
        steps = trajectory(run(apd_engine(), each))
        assert all(len(step) == 1 for step in steps)
        order = [position for ((position, _, _),) in steps]
        assert order == sorted(order)


def test_guidance_reaches_the_mixture() -> None:
    engine = apd_engine()
    plain = request(PROMPTS[1], AdaptiveParallel(0.9, 8))
    guided = dataclasses.replace(plain, params=dataclasses.replace(plain.params, cfg_scale=2.0))
    canvases = [finished(run(engine, each)).outputs[0].canvas for each in (plain, guided)]
    assert canvases[0] != canvases[1]
    assert np.isin(canvases, 96).sum() == 0


def test_ids_that_the_auxiliary_model_does_not_know_are_no_obstacle(tmp_path: Path) -> None:
    """A vocabulary may lack tokens that were added to the diffusion model's."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=60, **shape, **heads)).save_pretrained(tmp_path)
    engine = apd_engine()
    narrow = loader.load(str(tmp_path), "cpu", "float32")
    engine.runner.auxiliary = Auxiliary(narrow.reserving(128), engine.runner.fill, 128)
    for mixture, highest in ((1.0, range(60, 96)), (0.5, range(60))):
        asked = request((80, 3, 90), AdaptiveParallel(mixture, 24), temperature=1.0, seed=1)
        assert max(finished(run(engine, asked)).outputs[0].canvas[3:]) in highest


def test_the_auxiliary_model_computes_no_more_at_once_than_a_step_may() -> None:
    """Prompts that are long together are looked at in several passes, with the same result."""
    prompts = [tuple((7 * i + key) % 90 for i in range(60)) for key in range(4)]
    given = [request(p, AdaptiveParallel(0.5, 9), temperature=0.7, seed=1) for p in prompts]
    wide, narrow = apd_engine(), apd_engine(max_step_tokens=128, batch_invariant=True)
    sizes: list[int] = []
    model = narrow.runner.auxiliary.model
    inner = type(model).logits

    def counted(self: object, token_ids: torch.Tensor, *others: object) -> torch.Tensor:
        if self is model:
            sizes.append(len(token_ids))
        return inner(self, token_ids, *others)

    type(model).logits = counted
    try:
        found = told_of(narrow, given)
    finally:
        type(model).logits = inner
    assert set(sizes) == {128}
    assert [finished(events).outputs[0].canvas for events in found] == [
        finished(events).outputs[0].canvas for events in told_of(wide, given)
    ]
