"""Prompts where attention looks back only: read page by page, shared, and a burden to nobody."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.engine.test_caches import CAUSAL, LLADA2, LONG, SDAR, asked
from tests.engine.tools import LogitsRecorder, add, finished, run, run_all, tiny_engine, trajectory
from vdiff_grpc.engine.events import Finished


@pytest.mark.parametrize("path", [SDAR, LLADA2, CAUSAL])
def test_a_prompt_that_was_read_before_is_not_read_again_and_changes_nothing(path: object) -> None:
    engine = tiny_engine(path, early_end=False)  # type: ignore[arg-type]
    recorder = LogitsRecorder.install(engine)
    request = asked(temperature=0.6, seed=5)
    answers = []
    for key in (1, 2):
        add(engine, key, request)
        answers.append(run_all(engine)[key])
    first, second = (finished(events).outputs[0] for events in answers)
    assert trajectory(answers[0]) == trajectory(answers[1])
    pairs = zip(
        recorder.seen[1, 0][-first.steps :], recorder.seen[2, 0][-first.steps :], strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (first.shared_prompt_tokens, second.shared_prompt_tokens) == (0, 64)
    assert second.computed_tokens == first.computed_tokens - 64
    assert second.forward_passes == first.forward_passes - 1
    assert engine.statistics.shared_prompt_tokens == 64
    alone = tiny_engine(path, early_end=False, share_prompts=False)  # type: ignore[arg-type]
    for _ in range(2):
        events = run(alone, request)
        assert finished(events).outputs[0].shared_prompt_tokens == 0
        assert trajectory(events) == trajectory(answers[0])


def test_answers_of_one_request_read_their_prompt_once() -> None:
    engine = tiny_engine(SDAR, early_end=False)
    outputs = finished(run(engine, asked(n=4, temperature=1.0, seed=1))).outputs
    assert [output.shared_prompt_tokens for output in outputs] == [0, 64, 64, 64]
    assert len({output.tokens.ids for output in outputs}) > 1
    for output in outputs:
        again = asked(temperature=1.0, seed=output.seed)
        assert finished(run(engine, again)).outputs[0].tokens.ids == output.tokens.ids


def test_a_guided_row_shares_nothing_and_answers_as_ever() -> None:
    engine = tiny_engine(SDAR, early_end=False)
    plain, guided = asked(), asked(cfg_scale=1.0)
    expected = trajectory(run(engine, guided))
    run(engine, plain)
    events = run(engine, guided)
    assert trajectory(events) == expected
    assert finished(events).outputs[0].shared_prompt_tokens == 0


def test_the_number_of_prompt_tokens_in_a_step_changes_no_token() -> None:
    few = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32)
    many = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=4096)
    requests = [asked(LONG[i:], temperature=0.5, seed=i) for i in range(3)]
    for engine in (few, many):
        for key, request in enumerate(requests):
            add(engine, key, request)
    slowly, at_once = run_all(few), run_all(many)
    for key in range(3):
        assert trajectory(slowly[key]) == trajectory(at_once[key])
    assert few.statistics.engine_steps > many.statistics.engine_steps


def test_a_long_prompt_adds_no_more_to_a_step_than_it_may() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32)
    computed: list[int] = []
    add(engine, 1, asked((5, 6, 7), 32))
    engine.step()
    add(engine, 2, asked((*LONG, *LONG[:20])))
    while engine.has_work:
        before = engine.statistics.computed_tokens
        engine.step()
        computed.append(engine.statistics.computed_tokens - before)
    block, rest = 4, 31  # what is left of a prompt is read with the first block
    assert max(computed[:3]) <= 32 + 2 * block  # a block is left and the next begun
    assert max(computed) <= 32 + 2 * block + rest


def test_while_a_row_waits_for_a_prompt_that_is_being_read_others_pass() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32)
    for key, prompt in ((1, LONG), (2, LONG), (3, (5, 6, 7))):
        add(engine, key, asked(prompt))
    engine.step()
    assert [row.key for row in engine.scheduler.running] == [1, 3]
    assert engine.statistics.waiting_rows == 1
    engine.step()
    engine.step()
    assert [row.key for row in engine.scheduler.running] == [1, 3, 2]
    assert finished(run_all(engine)[2]).outputs[0].shared_prompt_tokens == 64


def test_a_row_whose_forerunner_has_left_reads_the_prompt_itself() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32)
    add(engine, 1, asked())
    add(engine, 2, asked())
    engine.step()
    engine.abort(1)
    output = finished(run_all(engine)[2]).outputs[0]
    assert output.shared_prompt_tokens == 32, "of what was read already it makes use"
    again = finished(run(tiny_engine(SDAR, early_end=False), asked())).outputs[0]
    assert output.tokens.ids == again.tokens.ids


def test_a_short_prompt_is_read_beside_more_long_ones_than_a_step_has_pages_for() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32, share_prompts=False)
    for key in range(3):
        add(engine, key, asked((*LONG, key)))
    add(engine, 9, asked(LONG[:33]))
    for _ in range(4):
        engine.step()
    assert not engine.scheduler.running[3].num_pages_ahead


def test_who_followed_and_finds_no_memory_holds_up_nobody_of_a_smaller_priority() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32, cache_tokens=128)
    add(engine, 1, asked(num_new=8))
    add(engine, 2, dataclasses.replace(asked((*LONG, 1, 2, 3, 4, 5), 24), priority=50))
    for _ in range(3):
        engine.step()
    add(engine, 3, dataclasses.replace(asked((5, 6, 7), 8), priority=0))
    engine.step()
    assert [row.key for row in engine.scheduler.running] == [1, 3]
    events = run_all(engine)
    assert all(isinstance(events[key][-1], Finished) for key in (1, 2, 3))


def test_what_does_not_fit_drives_no_shared_prompt_out() -> None:
    engine = tiny_engine(SDAR, early_end=False, cache_tokens=160)
    run(engine, asked(num_new=8))
    add(engine, 1, asked((5, 6, 7), 61))  # two pages that stay
    engine.step()
    add(engine, 2, asked(LONG[1:40], 20, cfg_scale=1.0))
    engine.step()
    engine.abort(1)
    engine.abort(2)
    assert finished(run(engine, asked(num_new=8))).outputs[0].shared_prompt_tokens == 64


def test_passes_are_counted_alike_alone_and_in_company() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_prompt_step_tokens=32, share_prompts=False)
    alone = finished(run(engine, asked())).outputs[0]
    for key in range(5):
        add(engine, key, asked())
    assert {finished(e).outputs[0].forward_passes for e in run_all(engine).values()} == {
        alone.forward_passes
    }


def test_a_prompt_longer_than_a_step_is_read_in_pages() -> None:
    engine = tiny_engine(SDAR, early_end=False, max_step_tokens=64)
    assert engine.limits.max_canvas_tokens == 128
    assert finished(run(engine, asked((*LONG, *LONG[:25]), 8))).outputs[0].tokens.ids
