"""Latency budgets over real gRPC: what the reply says, who may be hurried, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.conftest import RunningServer, running, tiny_config
from tests.server.calls import generate, ids, long_spec, reason, spec, violations
from tests.server.test_auth import bearer
from vdiff_grpc import keys, v1

PLAIN, HURRIED = keys.new_key(), keys.new_key()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One running row; the key `hurried` has a budget that nothing can keep."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    rights = ("generate", "inspect")
    entries = [
        keys.KeyEntry("plain", (keys.digest(PLAIN),), rights),
        keys.KeyEntry("hurried", (keys.digest(HURRIED),), rights, latency_budget_s=0.0001),
    ]
    keys.save(path, entries)
    with running(tiny_config(api_keys=str(path), max_running_rows=1, overload="refuse")) as server:
        yield server


@pytest.fixture(scope="module")
def queueing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        keys.KeyEntry("plain", (keys.digest(PLAIN),), ("generate", "inspect")),
        keys.KeyEntry("hurried", (keys.digest(HURRIED),), latency_budget_s=0.0001),
    ]
    keys.save(path, entries)
    with running(tiny_config(api_keys=str(path))) as server:
        yield server


def with_budget(asked: v1.GenerationSpec, seconds: float) -> v1.GenerateRequest:
    budget = Duration()
    budget.FromNanoseconds(round(seconds * 1e9))
    asked.latency_budget.CopyFrom(budget)
    return generate(asked)


def scheduled(**sampling: int) -> v1.GenerationSpec:
    asked = spec(**sampling)
    asked.diffusion.fixed_schedule.SetInParent()
    return asked


def test_a_hurried_answer_says_so_and_its_neighbour_stays_as_it_was(
    queueing: RunningServer,
) -> None:
    ask, plain = queueing.generation.Generate, bearer(PLAIN)
    alone = ask(generate(scheduled(max_new_tokens=24, seed=3)), metadata=plain)
    beside = ask.future(generate(scheduled(max_new_tokens=24, seed=3)), metadata=plain)
    hurried = ask(with_budget(scheduled(max_new_tokens=24, seed=3), 0.001), metadata=plain)
    assert hurried.metrics.hurried
    assert hurried.metrics.tokens_per_forward > alone.metrics.tokens_per_forward == 1
    assert ids(beside.result()) == ids(alone)
    assert not alone.metrics.hurried
    again = v1.GenerationSpec(token_ids=scheduled().token_ids)
    again.sampling.CopyFrom(hurried.resolved.sampling)
    again.diffusion.CopyFrom(hurried.resolved.diffusion)
    assert ids(ask(generate(again), metadata=plain)) == ids(alone), "resolved: without a budget"


def test_the_statistics_count_what_became_of_budgets(queueing: RunningServer) -> None:
    def counts() -> tuple[int, int, int]:
        told = queueing.model.GetServerInfo(
            v1.GetServerInfoRequest(), metadata=bearer(PLAIN)
        ).statistics
        return told.requests_hurried, told.budgets_met, told.budgets_missed

    ask, before = queueing.generation.Generate, counts()
    for seconds in (60, 1e-6):
        ask(with_budget(scheduled(max_new_tokens=24), seconds), metadata=bearer(PLAIN))
    assert tuple(np.subtract(counts(), before)) == (1, 1, 1)


def test_a_stream_ends_with_hurried(queueing: RunningServer) -> None:
    asked = with_budget(scheduled(max_new_tokens=24), 0.001).spec
    stream = queueing.generation.StreamGenerate(
        v1.StreamGenerateRequest(spec=asked), metadata=bearer(PLAIN)
    )
    last = list(stream)[-1]
    assert last.finished.metrics.hurried


def test_the_steps_that_were_hurried_are_told(queueing: RunningServer) -> None:
    ask, plain = queueing.generation, bearer(PLAIN)
    asked = with_budget(scheduled(max_new_tokens=24), 0.001).spec
    options = v1.StreamOptions(granularity=v1.GRANULARITY_STEPS)
    request = v1.StreamGenerateRequest(spec=asked, options=options)
    streamed = [e.step_update for e in ask.StreamGenerate(request, metadata=plain)]
    asked.return_trajectory = True
    kept = list(ask.Generate(generate(asked), metadata=plain).outputs[0].trajectory)
    for updates in (streamed, kept):
        assert any(update.hurried for update in updates)
        # One token a step is the schedule's own.
        assert all(update.hurried == (len(update.positions) > 1) for update in updates)
    request.spec.latency_budget.seconds = 60
    calm = list(ask.StreamGenerate(request, metadata=plain))
    assert not any(event.step_update.hurried for event in calm)
    assert len([e for e in calm if e.HasField("step_update")]) == 24


def test_a_key_may_be_opted_in_and_its_own_word_counts_more(queueing: RunningServer) -> None:
    ask, mine = queueing.generation.Generate, bearer(HURRIED)
    assert ask(generate(scheduled(max_new_tokens=24)), metadata=mine).metrics.hurried
    calm = ask(with_budget(scheduled(max_new_tokens=24), 60), metadata=mine)
    assert not calm.metrics.hurried
    unhurried = spec(max_new_tokens=24)
    unhurried.diffusion.wino.SetInParent()
    assert not ask(generate(unhurried), metadata=mine).metrics.hurried, "wino goes without"


@pytest.mark.parametrize(("seconds", "strategy"), [(0, ""), (-1, ""), (1e6, ""), (1, "wino")])
def test_a_budget_that_cannot_be_honoured_is_refused_by_name(
    queueing: RunningServer, seconds: float, strategy: str
) -> None:
    asked = spec()
    if strategy:
        getattr(asked.diffusion, strategy).SetInParent()
    with pytest.raises(grpc.RpcError) as error:
        queueing.generation.Generate(with_budget(asked, seconds), metadata=bearer(PLAIN))
    assert list(violations(error.value)) == ["spec.latency_budget"]


def test_overload_refuse_says_when_to_come_back(shared: RunningServer) -> None:
    ask, plain = shared.generation.Generate, bearer(PLAIN)
    holding = [ask.future(generate(long_spec()), metadata=plain) for _ in range(2)]
    with pytest.raises(grpc.RpcError) as error:
        ask(with_budget(scheduled(max_new_tokens=24), 0.0001), metadata=plain)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error.value) == "LATENCY_BUDGET"
    for call in holding:
        call.cancel()


def test_a_wrong_budget_of_a_key_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for wrong in ("0", "-1", '"1"', "true"):
        path.write_text(
            '{"keys": [{"name": "a", "sha256": ["'
            + "0" * 64
            + f'"], "latency_budget_s": {wrong}}}]}}'
        )
        with pytest.raises(keys.KeyFileError, match="latency_budget_s of 'a'"):
            keys.load(path)
