"""best_of: candidates are judged by their likelihood, alike alone and in company."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.tools import GOLDEN, TINY, add, finished, run_all, tiny_engine
from vdiff_grpc.engine.attention import AttentionLayout
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.caches.pages import Lease
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Finished, FinishReason, Output
from vdiff_grpc.engine.likelihood import NUM_LOOKS, Scoring, begin_scoring, is_scoring
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.sequence import CANVAS, Sequence
from vdiff_grpc.engine.strategies import Editing, FreeDave, Remdm, Strategy, Wino
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import output_seed, resolve

SDAR, CAUSAL, DREAM = GOLDEN / "tiny-sdar", GOLDEN / "tiny-causal", GOLDEN / "tiny-dream"
MODELS = [TINY, DREAM, SDAR, CAUSAL]


def asked(num_new: int = 12, prompt: int = 40, **params: object) -> Request:
    values = {"temperature": 1.0, "seed": 3} | params
    return Request(
        TokensPrompt(tuple(1 + i % 90 for i in range(prompt))),
        RequestParams(max_new_tokens=num_new, **values),  # type: ignore[arg-type]
    )


def answer(engine: Engine, request: Request) -> Finished:
    add(engine, 1, request)
    return finished(run_all(engine)[1])


def apart(output: Output) -> Output:
    """What does not depend on the place among the outputs, nor on who has read the prompt."""
    return dataclasses.replace(
        output, index=0, shared_prompt_tokens=0, computed_tokens=0, forward_passes=0
    )


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_the_outputs_are_the_best_of_the_candidates(path: Path) -> None:
    engine = tiny_engine(path)
    everyone = answer(engine, asked(n=6, best_of=6))
    scores = [output.score for output in everyone.outputs]
    assert all(score is not None and math.isfinite(score) and score < 0 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    assert {output.seed for output in everyone.outputs} == {output_seed(3, i) for i in range(6)}
    best = answer(engine, asked(n=2, best_of=6))
    assert [output.index for output in best.candidates] == list(range(6))
    assert [apart(o) for o in best.outputs] == [apart(o) for o in everyone.outputs[:2]]
    plain = answer(engine, asked(seed=best.outputs[0].seed))
    assert plain.outputs[0].tokens == best.outputs[0].tokens
    assert plain.outputs[0].score is None


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_every_pass_is_counted(path: Path) -> None:
    engine = tiny_engine(path, early_end=False, share_prompts=False)
    plain = answer(engine, asked(n=3))
    before = engine.statistics
    judged = answer(engine, asked(n=1, best_of=3))
    after = engine.statistics
    assert after.forward_passes - before.forward_passes == judged.forward_passes
    assert after.completion_tokens - before.completion_tokens == judged.completion_tokens == 36
    more = judged.forward_passes - plain.forward_passes
    # sdar: 4 looks at each of 3 blocks, 12 tokens in a step of one page and a block
    expected = {TINY: NUM_LOOKS, DREAM: NUM_LOOKS, SDAR: 4 * 12 // 36 + 1, CAUSAL: 0}[path]
    assert more == 3 * expected


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_scores_are_the_same_in_company(path: Path) -> None:
    engine = tiny_engine(path, max_running_rows=5)
    requests = [
        asked(11, 37, best_of=2, seed=5),
        asked(20, 9, n=2, seed=1),
        asked(7, 22, n=2, best_of=3, seed=9),
        asked(16, 40, best_of=1, seed=2, temperature=0.5),
    ]
    if path != CAUSAL:
        requests[3] = asked(16, 40, best_of=2, cfg_scale=1.0)
    alone = [answer(engine, request) for request in requests]
    for key, request in enumerate(requests):
        add(engine, key, request)
        engine.step()
    together = run_all(engine)
    for key, expected in enumerate(alone):
        ours = finished(together[key])
        assert [apart(o) for o in ours.candidates] == [apart(o) for o in expected.candidates]


@pytest.mark.parametrize(
    "strategy", [Wino(), Remdm(), Editing(), FreeDave()], ids=lambda strategy: strategy.NAME
)
@pytest.mark.parametrize("cache", [CacheKind.NONE, CacheKind.DUAL], ids=lambda kind: kind.value)
def test_any_strategy_and_cache_is_judged_by_the_whole_canvas(
    strategy: Strategy, cache: CacheKind
) -> None:
    if cache is CacheKind.DUAL and strategy.NAME in ("wino", "freedave"):
        strategy = Editing(max_post_steps=0)
    engine = tiny_engine(early_end=False)
    judged = answer(engine, asked(best_of=2, strategy=strategy, cache=cache, block_length=6))
    for output in judged.candidates:
        row = _filled(engine, output)
        begin_scoring(row)
        while is_scoring(row):
            engine.runner.step([row])
        assert row.memory.score == output.score


def test_a_causal_model_knows_its_likelihood_exactly() -> None:
    output = answer(tiny_engine(CAUSAL, early_end=False), asked(best_of=1)).outputs[0]
    logs = np.log(np.array(output.tokens.confidences, dtype=np.float32).astype(np.float64))
    assert output.score == pytest.approx(logs.mean(), rel=1e-12)


def test_each_block_is_judged_given_those_before_it() -> None:
    """Against passes over the whole canvas up to the block, without what is kept."""
    engine = tiny_engine(SDAR, early_end=False)
    request = asked(14, 39, best_of=1)
    output = answer(engine, request).outputs[0]
    row = _row(engine, request)
    _fill(row, list(output.tokens.ids))
    total = 0.0
    row.leases[CANVAS] = Lease([], 0)
    begin_scoring(row)
    for look in (look for looks in row.memory.passes for look in looks):
        assert look.begin % 4 == 0
        assert len(look.masked) <= look.end - look.begin <= 4
        ids = row.ids[: look.end].copy()
        ids[look.masked] = row.mask_token_id
        logits = engine.model.logits(
            torch.from_numpy(ids),
            torch.arange(look.end),
            AttentionLayout.of_lengths([look.end], [row.mask_rule]),
            torch.from_numpy(look.masked),
        )
        own = torch.from_numpy(row.ids[look.masked]).unsqueeze(1)
        total += look.weight * float(logits.log_softmax(-1).gather(1, own).sum())
    assert output.score == pytest.approx(total / 14, abs=1e-4)


def test_equal_answers_have_equal_scores_and_come_in_their_own_order() -> None:
    engine = tiny_engine()
    outputs = answer(engine, asked(n=3, best_of=3, temperature=0.0)).outputs
    assert len({output.tokens.ids for output in outputs}) == 1
    assert len({output.score for output in outputs}) == 1
    assert [output.seed for output in outputs] == [output_seed(3, i) for i in range(3)]


def test_what_follows_the_end_is_not_looked_at() -> None:
    """An answer that ends early has the score of the same answer on a canvas of just its size."""
    engine = tiny_engine()
    end = engine.info.end_token_ids[0]
    long, short = (
        _row(engine, asked(length, 5, best_of=1, block_length=length)) for length in (12, 4)
    )
    for row in (long, short):
        _fill(row, [7, 8, 9, end], done=False)
        assert row.finished
        begin_scoring(row)
        while is_scoring(row):
            engine.runner.step([row])
    assert long.memory.score == short.memory.score


def test_frozen_text_behind_a_hole_is_looked_at() -> None:
    engine = tiny_engine()

    def score(behind: tuple[int, ...]) -> float | None:
        prompt = InfillPrompt(((1, 2, 3), Hole(4), behind))
        params = RequestParams(seed=1, best_of=1)
        row = _row(engine, Request(prompt, params))
        _fill(row, [7, 8, 9, 10])
        begin_scoring(row)
        while is_scoring(row):
            engine.runner.step([row])
        found: float | None = row.memory.score
        return found

    assert score((20, 21)) != score((20, 22))


def test_every_position_has_the_same_weight_on_average() -> None:
    engine = tiny_engine()
    weights = np.zeros(7)
    for seed in range(400):
        row = _row(engine, asked(7, 3, best_of=1, seed=seed))
        _fill(row, list(range(10, 17)))
        begin_scoring(row)
        assert isinstance(row.memory, Scoring)
        for look in (look for looks in row.memory.passes for look in looks):
            weights[look.masked - 3] += look.weight
    # one look's weight at a position has a standard deviation below 1.3; 7 looks, 400 times
    assert weights / 400 == pytest.approx(np.ones(7), abs=5 * 1.3 / math.sqrt(400))


def test_what_the_deadline_leaves_unjudged_comes_last() -> None:
    engine = tiny_engine(max_running_rows=1)
    request = dataclasses.replace(asked(4, 3, n=3, best_of=3), partial_on_deadline=True)
    add(engine, 1, request)
    while engine.scheduler.num_waiting > 1:  # until the first has left, judged
        engine.step()
    engine.extend(1, 0)
    outputs = finished([event for _, event in engine.step()]).outputs
    assert outputs[0].seed == 3
    assert outputs[0].score is not None
    assert [(o.score, o.finish_reason) for o in outputs[1:]] == [(None, FinishReason.PARTIAL)] * 2


def test_a_neighbour_without_best_of_is_not_kept_waiting_by_the_looks() -> None:
    engine = tiny_engine(max_running_rows=2)
    add(engine, 1, asked(1, 3, best_of=1))
    add(engine, 2, asked(5, 3))
    steps = list(_steps_until_done(engine))
    assert steps == [(1, 2), (2, 5)], "one token and one look at it; five tokens"


def _steps_until_done(engine: Engine) -> Iterator[tuple[int, int]]:
    number = 0
    while engine.has_work:
        number += 1
        for key, event in engine.step():
            if isinstance(event, Finished):
                yield key, number


def _row(engine: Engine, request: Request) -> Sequence:
    resolved = resolve(request, engine.info, engine.limits, engine.tokenizer)
    return Sequence(1, resolved, 0, engine.info, engine.tokenizer)


def _fill(row: Sequence, ids: list[int], *, done: bool = True) -> None:
    positions = row.generated[: len(ids)]
    row.ids[positions] = ids
    row.state[positions] = 3
    row.settle(block_done=done)


def _filled(engine: Engine, output: Output) -> Sequence:
    """A row with the output's tokens, of the request that it came from."""
    row = _row(engine, asked(best_of=2))
    _fill(row, list(output.tokens.ids))
    return row
