"""Callers beside one another over real gRPC: places by priority, and one share for each key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.conftest import RunningServer, running, tiny_config
from tests.server.calls import generate, ids, long_spec, reason, spec, violations
from tests.server.test_auth import bearer
from tests.server.test_limits import wait_for
from vdiff_grpc import keys, v1
from vdiff_grpc.engine import validation
from vdiff_grpc.keys import KeyEntry

Serve = Callable[..., RunningServer]
HEAVY, LIGHT, FIRST, LAST = (keys.new_key() for _ in range(4))


def entry(name: str, key: str, min_priority: int | None = None) -> KeyEntry:
    return KeyEntry(name, (keys.digest(key),), ("generate", "inspect"), min_priority=min_priority)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One running row, and four callers."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [entry("heavy", HEAVY), entry("light", LIGHT)]
    keys.save(path, [*entries, entry("first", FIRST, -10), entry("last", LAST, 5)])
    config = tiny_config(api_keys=str(path), max_running_rows=1, max_waiting_rows=200)
    with running(config) as server:
        yield server


def wait_for_rows(server: RunningServer, waiting: int) -> None:
    def waits() -> bool:
        asked = v1.GetServerInfoRequest()
        reply = server.model.GetServerInfo(asked, metadata=bearer(HEAVY))
        return reply.statistics.waiting_rows >= waiting

    deadline = time.monotonic() + 20
    while not waits():
        assert time.monotonic() < deadline, "they are not in the queue"


def with_priority(priority: int) -> v1.GenerationSpec:
    asked = spec(max_new_tokens=4)
    asked.priority = priority
    return asked


def test_a_heavy_caller_does_not_keep_a_light_one_waiting(shared: RunningServer) -> None:
    ask = shared.generation.Generate
    alone = ids(ask(generate(spec(seed=9)), metadata=bearer(LIGHT)))
    heavy = [ask.future(generate(long_spec(n=8)), metadata=bearer(HEAVY)) for _ in range(12)]
    wait_for_rows(shared, 90)
    light = ask(generate(spec(seed=9)), metadata=bearer(LIGHT), timeout=30)
    assert ids(light) == alone
    ended = sum(call.done() for call in heavy)
    assert ended <= 2, "96 rows came before it"
    for call in heavy:
        call.cancel()


def test_a_key_that_may_goes_first(shared: RunningServer) -> None:
    ask = shared.generation.Generate
    heavy = [ask.future(generate(long_spec(n=8)), metadata=bearer(HEAVY)) for _ in range(4)]
    wait_for_rows(shared, 30)
    order: list[str] = []
    others = []
    for name, key, priority in (("last", LAST, 9), ("light", LIGHT, 0), ("first", FIRST, -10)):
        call = ask.future(generate(with_priority(priority)), metadata=bearer(key))
        call.add_done_callback(lambda _, name=name: order.append(name))
        others.append(call)
    wait_for_rows(shared, 33)
    assert others[2].result().outputs
    assert others[1].result().outputs
    assert not others[0].done(), "the heavy caller's rows come before it"
    assert order == ["first", "light"]
    for call in heavy:
        call.cancel()
    assert others[0].result().outputs


@pytest.mark.parametrize(
    ("key", "priority"), [(LIGHT, -1), (FIRST, -11), (LAST, 4)], ids=["light", "first", "last"]
)
def test_nobody_goes_before_what_the_key_allows(
    shared: RunningServer, key: str, priority: int
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared.generation.Generate(generate(with_priority(priority)), metadata=bearer(key))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason(refused.value) == "PERMISSION_DENIED"
    assert f"priority ({priority}) is below" in refused.value.details()


@pytest.mark.parametrize("priority", [0, 7, 100])
def test_whoever_has_no_key_may_only_go_later(server: RunningServer, priority: int) -> None:
    server.generation.Generate(generate(with_priority(priority)))
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(with_priority(-1)))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_priority_beyond_the_range_is_refused_by_name(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(with_priority(101)))
    assert violations(refused.value) == {"spec.priority": "priority (101) is not in [-100, 100]"}
    assert validation.MAX_PRIORITY == keys.MAX_PRIORITY


def test_a_retry_may_have_another_priority(serve: Serve) -> None:
    server = serve()
    first, second = with_priority(3), with_priority(4)
    first.request_id = second.request_id = "same"
    one = server.generation.Generate(generate(first))
    assert ids(server.generation.Generate(generate(second))) == ids(one)
    assert wait_for(server, lambda now: now.requests_finished == 1)
