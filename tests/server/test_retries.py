"""The same request_id again: one run, one answer, counted in requests and forward passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.conftest import RunningServer
from tests.server.calls import Canvases, generate, ids, long_spec, reason, spec, stream
from tests.server.test_limits import begun, wait_for
from tests.server.test_quarantine import Clock
from tests.server.test_request_stream import FINISHED, resolved
from vdiff_grpc import keys, v1
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import Request
from vdiff_grpc.server.retries import Retries, content_of
from vdiff_grpc.server.run import Run

Serve = Callable[..., RunningServer]


def named(name: str, asked: v1.GenerationSpec) -> v1.GenerationSpec:
    asked.request_id = name
    return asked


def unseeded(name: str, **sampling: object) -> v1.GenerationSpec:
    asked = named(name, long_spec(temperature=1.0, **sampling))
    asked.sampling.ClearField("seed")
    return asked


def test_a_retry_joins_the_running_call_and_both_get_its_answer(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    asked = unseeded("a", n=4)
    first = server.generation.Generate.future(generate(asked))
    wait_for(server, lambda now: now.forward_passes > 3)
    second = server.generation.Generate.future(generate(asked))
    assert first.result() == second.result()
    assert first.result().resolved.sampling.seed
    now = server.statistics()
    assert now.requests == 1
    assert now.forward_passes == first.result().metrics.forward_passes


def test_calls_that_come_together_are_one_request(serve: Serve) -> None:
    server = serve()
    asked = unseeded("a")
    calls = [server.generation.Generate.future(generate(asked)) for _ in range(8)]
    assert len({call.result().SerializeToString(deterministic=True) for call in calls}) == 1
    assert server.statistics().requests == 1


def test_a_retry_of_what_was_answered_gets_the_same_answer(serve: Serve) -> None:
    server = serve()
    asked = unseeded("a")
    first = server.generation.Generate(generate(asked))
    assert server.generation.Generate(generate(asked)) == first
    assert server.statistics().requests == 1
    # a stream's other options are another thing to be told
    with pytest.raises(grpc.RpcError) as refused:
        list(server.generation.StreamGenerate(stream(asked)))
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_the_first_may_leave_and_the_other_still_gets_its_answer(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    asked = named("a", long_spec(n=4))
    first = server.generation.Generate.future(generate(asked), timeout=0.3)
    wait_for(server, lambda now: now.forward_passes > 3)
    # the time that the second one has is the run's from now on
    second = server.generation.Generate.future(generate(asked), timeout=60)
    with pytest.raises(grpc.RpcError):
        first.result()
    assert len(second.result().outputs) == 4
    now = server.statistics()
    assert (now.requests, now.requests_aborted, now.forward_passes) == (1, 0, 480)


def test_when_the_last_one_leaves_the_work_ends_and_a_retry_has_the_same_seed(
    serve: Serve,
) -> None:
    server = serve(max_running_rows=1)
    asked = unseeded("a", n=4)
    call = server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS))
    seed = next(call).started.resolved.sampling.seed
    next(call)
    call.cancel()
    wait_for(server, lambda now: now.requests_aborted == 1)
    reply = server.generation.Generate(generate(asked))
    assert reply.resolved.sampling.seed == seed
    assert server.statistics().requests == 2


@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_that_joins_is_told_what_it_missed(serve: Serve, ended: bool) -> None:
    server = serve(max_running_rows=1)
    asked = stream(named("a", long_spec(n=2)), v1.GRANULARITY_STEPS)
    one, other = Canvases(), Canvases()
    first = server.generation.StreamGenerate(asked)
    for _ in range(30):
        one.apply(next(first))
    if ended:
        for event in first:
            one.apply(event)
    for event in server.generation.StreamGenerate(asked):
        other.apply(event)
    for event in first:
        one.apply(event)
    assert other.snapshots >= 1
    assert (one.canvas, one.committed, one.positions) == (
        other.canvas,
        other.committed,
        other.positions,
    )
    assert one.finished == other.finished
    assert server.statistics().requests == 1


def test_a_unary_call_may_join_a_stream(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    asked = named("a", long_spec(n=2))
    first = begun(server, asked)
    reply = server.generation.Generate(generate(asked))
    assert [len(row) for row in ids(reply)] == [120, 120]
    assert list(first)[-1].HasField("finished")
    assert server.statistics().requests == 1


def test_the_same_id_with_other_content_is_refused_by_name(serve: Serve) -> None:
    server = serve()
    server.generation.Generate(generate(named("mine", spec())))
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(named("mine", spec(seed=2))))
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert reason(refused.value) == "REQUEST_ID_CONFLICT"
    assert "request_id ('mine')" in refused.value.details()


def test_what_was_refused_leaves_its_id_free(serve: Serve) -> None:
    server = serve()
    with pytest.raises(grpc.RpcError):
        server.generation.Generate(generate(named("a", spec(temperature=9.0))))
    server.generation.Generate(generate(named("a", spec())))


def test_ids_from_metadata_and_ids_we_made_are_but_names(serve: Serve) -> None:
    server = serve()
    for metadata in ((("x-request-id", "trace"),), ()):
        for seed in (1, 2):
            server.generation.Generate(generate(spec(seed=seed)), metadata=metadata)
    assert server.statistics().requests == 4
    assert len(server.server._engine.runs._retries) == 0


def test_without_a_window_an_id_is_but_a_name(serve: Serve) -> None:
    server = serve(request_id_window_s=0.0)
    for seed in (1, 2, 2):
        server.generation.Generate(generate(named("a", spec(seed=seed))))
    assert server.statistics().requests == 3


def test_a_request_is_cancelled_by_its_id_from_another_connection(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    call = begun(server, named("long", long_spec(n=8)))
    waiting = server.generation.Generate.future(generate(named("waiting", spec())))
    wait_for(server, lambda now: now.requests == 2)
    with grpc.insecure_channel(server.address) as channel:
        elsewhere = v1.GenerationServiceStub(channel)
        for name, there in [("long", True), ("waiting", True), ("long", False), ("no", False)]:
            reply = elsewhere.CancelRequest(v1.CancelRequestRequest(request_id=name))
            assert reply.cancelled is there, name
        passes = server.statistics().forward_passes
        for ended in (lambda: list(call), waiting.result):
            with pytest.raises(grpc.RpcError) as cancelled:
                ended()
            assert cancelled.value.code() is grpc.StatusCode.CANCELLED
            assert reason(cancelled.value) == "REQUEST_CANCELLED"
        server.generation.Generate(generate(spec(max_new_tokens=4)))
        assert server.statistics().forward_passes - 4 - passes <= 1
        with pytest.raises(grpc.RpcError) as refused:
            elsewhere.CancelRequest(v1.CancelRequestRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_usage_counts_the_work_of_cancelled_requests_too(serve: Serve) -> None:
    server = serve(max_running_rows=1)
    server.generation.Generate(generate(spec()))
    call = begun(server, long_spec())
    call.cancel()
    now = wait_for(server, lambda now: now.requests_aborted == 1)
    [used] = server.model.GetServerInfo(v1.GetServerInfoRequest()).usage
    assert (used.caller, used.requests, used.prompt_tokens) == ("", 2, 8)
    assert used.forward_passes == used.completion_tokens == now.forward_passes > 16


def test_an_id_belongs_to_its_caller(serve: Serve, tmp_path: Path) -> None:
    one, other = keys.new_key(), keys.new_key()
    entries = [
        keys.KeyEntry(name, (keys.digest(key),), ("generate",))
        for name, key in [("one", one), ("other", other)]
    ]
    keys.save(tmp_path / "keys.json", entries)
    server = serve(api_keys=str(tmp_path / "keys.json"), max_running_rows=1)
    ours, theirs = ((("authorization", f"Bearer {key}"),) for key in (one, other))
    asked = stream(named("a", long_spec(n=8)))
    first = server.generation.StreamGenerate(asked, metadata=ours)
    assert next(first).HasField("started")
    wanted = v1.CancelRequestRequest(request_id="a")
    assert not server.generation.CancelRequest(wanted, metadata=theirs).cancelled
    # the same id of another caller is another request, whatever its content
    reply = server.generation.StreamGenerate(stream(named("a", spec())), metadata=theirs)
    assert next(reply).HasField("started")
    assert server.generation.CancelRequest(wanted, metadata=ours).cancelled
    with pytest.raises(grpc.RpcError):
        list(first)
    assert list(reply)[-1].HasField("finished")
    info = server.model.GetServerInfo(v1.GetServerInfoRequest(), metadata=theirs)
    assert [used.caller for used in info.usage] == ["other"]
    assert info.usage[0].forward_passes == 16
    assert not info.HasField("statistics")


def request(seed: int = 0) -> Request:
    return Request(TokensPrompt((1, seed)))


async def answered(retries: Retries, name: str, seed: int = 0) -> None:
    asked = request(seed)
    known = retries.begin(("", name), asked, content_of(asked))
    run = Run(1, resolved(), "", b"", 4, lambda _: None, may_join=True)
    retries.admit(known, run)
    run.push(FINISHED)
    retries.end(known)


async def test_answers_are_forgotten_by_age_number_and_size() -> None:
    clock = Clock()
    retries = Retries(60.0, 3, 10_000, clock)
    for number in range(5):
        await answered(retries, str(number))
    assert len(retries) == 3
    assert await retries.find(("", "1"), request(), content_of(request())) is None
    kept = await retries.find(("", "4"), request(), content_of(request()))
    assert kept is not None
    size = len(kept.answer)
    assert kept.replayed()[1] == [FINISHED]
    assert retries.num_bytes == 3 * size
    clock.now = 60.0
    assert await retries.find(("", "4"), request(), content_of(request())) is None
    assert (len(retries), retries.num_bytes) == (0, 0)
    tight = Retries(60.0, 1000, 2 * size, clock)
    for number in range(5):
        await answered(tight, str(number))
    assert (len(tight), tight.num_bytes) == (2, 2 * size)
    tiny = Retries(60.0, 1000, size - 1, clock)
    await answered(tiny, "0")
    assert (len(tiny), tiny.num_bytes) == (1, 0)  # its seed alone


async def test_a_try_that_is_refused_does_not_cost_the_seed() -> None:
    retries = Retries(60.0, 3, 10_000)
    name, asked, content = ("", "a"), request(), content_of(request())
    known = retries.begin(name, asked, content)
    retries.admit(known, Run(1, resolved(), "", b"", 4, lambda _: None, may_join=True))
    retries.end(known)  # its callers have left
    for _ in range(2):
        again = retries.begin(name, asked, content)
        assert again.seed == resolved().params.seed == 0
        retries.refuse(again)
    other = request(1)
    assert await retries.find(name, other, content_of(other)) is None
    assert retries.begin(name, other, content_of(other)).seed is None


async def test_whoever_comes_while_it_is_admitted_waits_for_it() -> None:
    retries = Retries(60.0, 3, 10_000)
    known = retries.begin(("", "a"), request(), content_of(request()))
    waiting = asyncio.ensure_future(retries.find(("", "a"), request(), content_of(request())))
    await asyncio.sleep(0)
    assert not waiting.done()
    retries.refuse(known)
    assert await waiting is None
