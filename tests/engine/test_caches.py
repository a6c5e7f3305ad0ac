"""Kept keys and values: exact where they are said to be, bounded, shared, and never lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.tools import (
    GOLDEN,
    LogitsRecorder,
    add,
    finished,
    run,
    run_all,
    same_in_company,
    tiny_engine,
    trajectory,
)
from vdiff_grpc.engine.attention import AttentionLayout
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, Finished
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, EntropyBound, Klass, Wino
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.errors import InvalidRequestError

SDAR, LLADA2, CAUSAL = (GOLDEN / f"tiny-{name}" for name in ("sdar", "llada2", "causal"))
LLADA, DREAM = GOLDEN / "tiny-llada", GOLDEN / "tiny-dream"
APPROXIMATE = (CacheKind.PREFIX, CacheKind.DUAL)
LONG = tuple((7 * i) % 90 for i in range(75))


def asked(prompt: tuple[int, ...] = LONG, num_new: int = 16, **more: object) -> Request:
    more.setdefault("seed", 1)  # SDAR's own temperature is not 0
    params = RequestParams(max_new_tokens=num_new, **more)  # type: ignore[arg-type]
    return Request(TokensPrompt(prompt), params, granularity=Granularity.STEPS)


def whole_logits(engine: Engine, canvas: np.ndarray, heads: np.ndarray) -> torch.Tensor:
    """Of these positions, by one pass over the whole canvas that sees no cache."""
    rule = engine_rule(engine)
    layout = AttentionLayout.of_lengths([len(canvas)], [rule])
    # where nothing is yet a causal model has no token; nobody looks there
    tokens = torch.from_numpy(np.where(canvas < engine.info.vocab_size, canvas, 0))
    places = torch.arange(len(canvas))
    return engine.model.logits(tokens, places, layout, torch.from_numpy(heads))


def engine_rule(engine: Engine):  # type: ignore[no-untyped-def]
    add(engine, 999, asked((1,), 4))
    rule = next(iter(engine.scheduler.waiting)).mask_rule
    engine.abort(999)
    return rule


# --- exact ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [SDAR, LLADA2, CAUSAL])
def test_what_is_settled_gives_the_logits_of_a_whole_pass(path: object) -> None:
    engine = tiny_engine(path, early_end=False)  # type: ignore[arg-type]
    recorder = LogitsRecorder.install(engine)
    add(engine, 1, asked())
    compared = 0
    while engine.has_work:
        rows = engine.scheduler.running
        canvas = rows[0].ids.copy() if rows else None
        reading = bool(rows) and rows[0].num_pages_ahead > 0
        wanted = rows[0].masked_in_block() if rows else None
        before = len(recorder.seen[1, 0])
        engine.step()
        if canvas is None or reading or len(recorder.seen[1, 0]) == before:
            continue
        assert wanted is not None
        whole = whole_logits(engine, canvas, wanted - engine.info.shift)
        torch.testing.assert_close(recorder.seen[1, 0][-1], whole, atol=2e-5, rtol=1e-4)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("path", [LLADA, DREAM])
def test_computed_anew_in_every_pass_nothing_is_approximate(kind: CacheKind, path: object) -> None:
    engine = tiny_engine(path, early_end=False)  # type: ignore[arg-type]
    request = asked(num_new=20, block_length=7, temperature=0.7, seed=3)
    plain = run(engine, request)
    params = dataclasses.replace(request.params, cache=kind, cache_refresh_steps=1)
    renewed = run(engine, dataclasses.replace(request, params=params))
    assert trajectory(renewed) == trajectory(plain)


# --- in company -----------------------------------------------------------------


def test_cached_rows_give_the_same_events_alone_and_in_company() -> None:
    for path in (LLADA, DREAM):
        engine = tiny_engine(path, early_end=False)
        requests = [
            asked(LONG[: 5 + 13 * i], 24, block_length=8, temperature=0.5 * (i % 2), seed=i,
                  cache=kind, cache_refresh_steps=refresh, cfg_scale=guided)
            for i, (kind, refresh, guided) in enumerate([
                (CacheKind.PREFIX, None, 0.0),
                (CacheKind.DUAL, None, 0.0),
                (CacheKind.DUAL, 3, 1.5),
                (CacheKind.PREFIX, 2, 0.5),
                (CacheKind.NONE, None, 0.0),
            ])
        ]  # fmt: skip
        same_in_company(engine, requests)


def test_a_row_with_a_cache_gives_the_same_logits_to_the_last_bit_in_company() -> None:
    for path, kinds in ((LLADA, APPROXIMATE), (SDAR, (None,)), (CAUSAL, (None,))):
        engine = tiny_engine(path, early_end=False, share_prompts=False)
        recorder = LogitsRecorder.install(engine)
        requests = [
            asked(LONG[: 9 + 30 * i], 12, cache=kinds[i % len(kinds)], temperature=0.8, seed=i)
            for i in range(3)
        ]
        alone = []
        for key, request in enumerate(requests):
            add(engine, key, request)
            run_all(engine)
            alone.append(recorder.seen.pop((key, 0)))
        for key, request in enumerate(requests):
            add(engine, key, request)
        run_all(engine)
        for key, expected in enumerate(alone):
            together = recorder.seen[key, 0]
            assert len(together) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(together, expected, strict=True))


def test_text_around_holes_stays_with_every_cache() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    prompt = InfillPrompt((LONG[:6], Hole(9), (5, 5, 7), Hole(4), (8, 9)))
    for kind in APPROXIMATE:
        params = RequestParams(block_length=6, cache=kind)
        canvas = finished(run(engine, Request(prompt, params))).outputs[0].canvas
        assert canvas[:6] == LONG[:6]
        assert (canvas[15:18], canvas[22:]) == ((5, 5, 7), (8, 9))
        assert engine.info.mask_token_id not in canvas


# --- memory -------------------------------------------------------------------------


def test_where_memory_is_full_rows_wait_and_nobody_dies_of_it() -> None:
    requests = [asked(LONG[: 20 + i], 12, temperature=0.5, seed=i) for i in range(8)]
    wide = tiny_engine(SDAR, early_end=False)
    expected = [trajectory(run(wide, request)) for request in requests]
    narrow = tiny_engine(SDAR, early_end=False, cache_tokens=96)  # one row, mostly
    for key, request in enumerate(requests):
        add(narrow, key, request)
    events = run_all(narrow)
    for key, wanted in enumerate(expected):
        assert trajectory(events[key]) == wanted
    assert narrow.statistics.cache_tokens == 0


def test_after_a_thousand_aborted_requests_every_page_is_there() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_running_rows=8)
    pages = engine.scheduler.reservations.pages
    for number in range(1000):
        request = asked(LONG[: 1 + number % 75], 8, seed=number, n=1 + number % 3)
        add(engine, number, request)
        if number % 5:
            engine.step()
        if number >= 8:
            engine.abort(number - 8)
    for number in range(992, 1000):
        engine.abort(number)
    assert not engine.has_work
    assert pages.num_held == 0
    assert engine.statistics.cache_tokens == 0
    whole = pages.take(pages.num_pages * pages.page_tokens)
    assert whole is not None
    assert sorted(whole.pages) == list(range(pages.num_pages))


def test_a_row_whose_deadline_comes_gives_its_pages_back() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    request = asked(num_new=40, cache=CacheKind.DUAL)
    add(engine, 1, dataclasses.replace(request, partial_on_deadline=True))
    engine.step()
    assert engine.statistics.cache_tokens > 0
    engine.extend(1, 1)
    events: list[Event] = [event for _, event in engine.step()]
    assert isinstance(events[-1], Finished)
    assert engine.statistics.cache_tokens == 0


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more", "words"),
    [
        (SDAR, {"cache": CacheKind.DUAL}, "cache dual is not among this model's: settled"),
        (LLADA, {"cache": CacheKind.SETTLED}, "is not among this model's: none, prefix, dual"),
        (LLADA, {"cache": CacheKind.DUAL, "strategy": Wino()}, "cannot be used with wino"),
        (LLADA, {"cache": CacheKind.DUAL, "strategy": Klass()}, "cannot be used with klass"),
        (LLADA, {"cache_refresh_steps": 3}, "cannot be set with cache none"),
        (LLADA, {"cache": CacheKind.DUAL, "cache_refresh_steps": 0}, "(0) is not in [1, 4096]"),
        (SDAR, {"suffix_window": 4}, "suffix_window (4) cannot be set"),
        (LLADA, {"suffix_window": 4, "strategy": Wino()}, "wino looks beyond the block"),
        (SDAR, {"cfg_scale": 1.0}, "keeps 192 tokens of a canvas of 92 and its blind twin"),
    ],
)
def test_what_cannot_be_kept_is_refused(path: object, more: dict[str, object], words: str) -> None:
    engine = tiny_engine(path, cache_tokens=128)  # type: ignore[arg-type]
    bystander = asked((4, 5, 6), 8)
    expected = run(engine, bystander)
    with pytest.raises(InvalidRequestError) as refused:
        add(engine, 7, asked(**more))
    assert words in str(refused.value)
    assert run(engine, bystander)[:-1] == expected[:-1]


def test_klass_may_keep_what_stands_before_its_block() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    request = asked(num_new=16, block_length=8, strategy=Klass(0.1, 2.0), cache=CacheKind.PREFIX)
    assert engine.info.mask_token_id not in finished(run(engine, request)).outputs[0].canvas


def test_a_cache_saves_what_it_is_meant_to_save() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    computed = {}
    for kind in (CacheKind.NONE, *APPROXIMATE):
        request = asked(num_new=32, block_length=8, strategy=EntropyBound(0.0), cache=kind)
        output = finished(run(engine, request)).outputs[0]
        computed[kind] = output.computed_tokens
        assert output.forward_passes == 32
    canvas, blocks = 75 + 32, 4
    assert computed[CacheKind.NONE] == 32 * canvas
    assert computed[CacheKind.DUAL] == blocks * (canvas + 7 * 8)
    rests = sum(7 * (32 - 8 * block) for block in range(blocks))
    assert computed[CacheKind.PREFIX] == blocks * canvas + rests


def test_a_threshold_fills_cached_blocks_at_once() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    request = asked(block_length=8, strategy=ConfidenceThreshold(1e-9), cache=CacheKind.DUAL)
    assert finished(run(engine, request)).outputs[0].forward_passes == 2


# --- the suffix window -----------------------------------------------------------------


def test_what_is_far_behind_the_block_is_not_computed_until_the_block_comes_near() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    request = asked(LONG[:11], 32, block_length=8, strategy=EntropyBound(0.0), suffix_window=4)
    output = finished(run(engine, request)).outputs[0]
    ends = [min(11 + 8 * (block + 1) + 4, 11 + 32) for block in range(4)]
    assert output.computed_tokens == sum(8 * end for end in ends)
    assert engine.info.mask_token_id not in output.canvas


@pytest.mark.parametrize("kind", [CacheKind.NONE, *APPROXIMATE])
def test_a_window_that_holds_all_changes_nothing(kind: CacheKind) -> None:
    engine = tiny_engine(DREAM, early_end=False)
    request = asked(num_new=24, block_length=8, temperature=0.5, cache=kind)
    wide = dataclasses.replace(request.params, suffix_window=1000)
    expected = trajectory(run(engine, request))
    assert trajectory(run(engine, dataclasses.replace(request, params=wide))) == expected


def test_given_text_behind_a_window_is_seen() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    prompt = InfillPrompt((LONG[:6], Hole(9), (5, 5, 7), Hole(12)))
    params = RequestParams(block_length=3, seed=1, strategy=EntropyBound(0.0), suffix_window=0)
    output = finished(run(engine, Request(prompt, params))).outputs[0]
    seen = [18] * 9 + [18 + 3 * (block + 1) for block in range(4) for _ in range(3)]
    assert output.computed_tokens == sum(seen)
    assert output.canvas[15:18] == (5, 5, 7)


def test_rows_with_a_window_are_the_same_in_company() -> None:
    engine = tiny_engine(LLADA, early_end=False)
    kinds = (CacheKind.NONE, *APPROXIMATE)
    requests = [
        asked(LONG[: 9 + i], 24, block_length=8, seed=i, temperature=0.4, cache=kind,
              suffix_window=3 * i)
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    same_in_company(engine, requests)


def test_blocks_of_one_position_are_kept_only_when_they_are_filled(tmp_path: Path) -> None:
    """A block-causal model's block may be 1: without a shift a mask must not be kept."""
    shutil.copytree(SDAR, tmp_path / "one")
    config = json.loads((SDAR / "config.json").read_text()) | {"block_size": 1}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    engine = tiny_engine(tmp_path / "one", early_end=False)
    recorder = LogitsRecorder.install(engine)
    add(engine, 1, asked((5, 6, 7), 8, temperature=0.0))
    engine.step()
    while engine.has_work:
        canvas, wanted = (r := engine.scheduler.running[0]).ids.copy(), r.masked_in_block()
        engine.step()
        whole = whole_logits(engine, canvas, wanted)
        torch.testing.assert_close(recorder.seen[1, 0][-1], whole, atol=2e-5, rtol=1e-4)
