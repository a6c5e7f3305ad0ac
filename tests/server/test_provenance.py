"""How answers came about, and which were chosen: return_trajectory and best_of, over real gRPC."""

from __future__ import annotations

import math

import grpc
import pytest

from tests.conftest import RunningServer
from tests.server.calls import MASK, PROMPT, generate, ids, long_spec, spec, stream, violations
from tests.server.test_strategies import REVOCABLE, SERVED, asking
from vdiff_grpc import v1
from vdiff_grpc.engine.strategies import STRATEGIES
from vdiff_grpc.server.convert.strategies import strategy_of


@pytest.mark.parametrize("name", SERVED)
def test_the_trajectory_is_what_the_stream_tells(server: RunningServer, name: str) -> None:
    asked = asking(name, n=2, temperature=1.0, max_new_tokens=20, ignore_eos=False)
    if name in REVOCABLE:
        asked.diffusion.CopyFrom(REVOCABLE[name])
    asked.diffusion.block_length = 10
    streamed: list[list[v1.StepUpdate]] = [[], []]
    for event in server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS)):
        if event.HasField("step_update"):
            streamed[event.step_update.output_index].append(event.step_update)
    asked.return_trajectory = True
    reply = server.generation.Generate(generate(asked))
    assert [list(output.trajectory) for output in reply.outputs] == streamed
    for output in reply.outputs:
        canvas = PROMPT + [MASK] * 20
        for update in output.trajectory:
            for position, token_id in zip(update.positions, update.token_ids, strict=True):
                canvas[position] = token_id
        tokens = list(output.tokens.ids)
        assert canvas[4 : 4 + len(tokens)] == tokens
        last = {p: u.step for u in output.trajectory for p in u.positions}
        assert [last[p] for p in output.tokens.positions] == list(output.tokens.steps)
        changes = sum(len(update.positions) for update in output.trajectory)
        strategy = strategy_of(reply.resolved.diffusion, [])
        assert strategy is not None
        steps = reply.resolved.diffusion.steps or None
        assert changes <= strategy.most_changes(20, 10, steps)


def test_without_being_asked_no_trajectory_is_told(server: RunningServer) -> None:
    reply = server.generation.Generate(generate(spec()))
    assert not reply.outputs[0].trajectory


def test_a_trajectory_that_could_be_too_large_is_refused(server: RunningServer) -> None:
    asked = long_spec(n=2)
    asked.diffusion.remdm.SetInParent()
    asked.diffusion.block_length = 120
    asked.diffusion.steps = 600
    asked.return_trajectory = True
    with pytest.raises(grpc.RpcError) as error:
        server.generation.Generate(generate(asked))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    most = 2 * (600 + 1) * 120
    found = violations(error.value)["spec.return_trajectory"]
    assert f"{most} positions" in found
    assert "(131072)" in found


@pytest.mark.parametrize("granularity", [v1.GRANULARITY_COMMITTED, v1.GRANULARITY_STEPS])
def test_a_stream_refuses_what_only_a_whole_answer_has(
    server: RunningServer, granularity: int
) -> None:
    asked = spec(best_of=2)
    asked.return_trajectory = True
    with pytest.raises(grpc.RpcError) as error:
        list(server.generation.StreamGenerate(stream(asked, granularity)))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violations(error.value)) == {"spec.return_trajectory", "spec.sampling.best_of"}


def test_the_best_come_first_with_their_scores_and_all_are_counted(server: RunningServer) -> None:
    before = server.statistics()
    reply = server.generation.Generate(generate(spec(n=2, best_of=5, temperature=1.0)))
    after = server.statistics()
    scores = [output.end.score for output in reply.outputs]
    assert [output.index for output in reply.outputs] == [0, 1]
    assert all(map(math.isfinite, scores))
    assert scores[0] > scores[1]
    assert reply.usage.completion_tokens == 5 * 16
    assert after.completion_tokens - before.completion_tokens == 5 * 16
    assert after.forward_passes - before.forward_passes == reply.metrics.forward_passes
    assert (reply.resolved.sampling.n, reply.resolved.sampling.best_of) == (2, 5)
    asked = spec(n=5, best_of=5, temperature=1.0)
    asked.return_trajectory = True
    everyone = server.generation.Generate(generate(asked))
    assert ids(everyone)[:2] == ids(reply)
    all_scores = [output.end.score for output in everyone.outputs]
    assert all_scores == sorted(all_scores, reverse=True)
    assert all_scores[:2] == scores
    for output in everyone.outputs:
        assert {update.output_index for update in output.trajectory} == {output.index}
    alone = spec(temperature=1.0, seed=reply.outputs[0].end.seed)
    assert ids(server.generation.Generate(generate(alone))) == ids(reply)[:1]


def test_without_best_of_there_is_no_score(server: RunningServer) -> None:
    reply = server.generation.Generate(generate(spec(n=2)))
    assert not any(output.end.HasField("score") for output in reply.outputs)
    assert not reply.resolved.sampling.HasField("best_of")


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        ({"best_of": 0}, "best_of (0) must be at least n (1)"),
        ({"n": 3, "best_of": 2}, "best_of (2) must be at least n (3)"),
        ({"best_of": 9}, "best_of (9) exceeds the server's limit (8)"),
    ],
)
def test_a_best_of_out_of_range_is_refused(
    server: RunningServer, sampling: dict[str, int], why: str
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        server.generation.Generate(generate(spec(**sampling)))
    assert violations(error.value) == {"spec.sampling.best_of": why}


def test_every_strategy_that_revokes_says_how_much_it_may_change() -> None:
    revocable = [kind for kind in STRATEGIES.values() if kind.REVOCABLE]
    assert len(revocable) == 4
    for kind in revocable:
        steps = 20 if kind.HAS_STEPS else None
        assert kind().resolved().most_changes(20, 10, steps) >= 20
