"""Connections that are asked to go elsewhere in time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from tests.conftest import RunningServer
from tests.server.calls import generate, ids, long_spec, spec, stream
from vdiff_grpc import v1

Serve = Callable[..., RunningServer]
READY = grpc.ChannelConnectivity.READY


def test_a_connection_of_age_is_left_and_its_open_calls_finish(serve: Serve) -> None:
    server = serve(max_connection_age_s=0.3, max_running_rows=1)
    left = threading.Event()
    with grpc.insecure_channel(server.address) as channel:
        stub = v1.GenerationServiceStub(channel)
        states: list[grpc.ChannelConnectivity] = []

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.IDLE and states[-1:] == [READY]:
                left.set()
            states.append(state)

        channel.subscribe(changed)
        call = stub.StreamGenerate(stream(long_spec(n=8)))
        assert next(call).HasField("started")
        assert left.wait(20), states
        assert list(call)[-1].HasField("finished")
        # whoever comes again finds the server on another connection
        assert len(ids(stub.Generate(generate(spec())))[0]) == 16
