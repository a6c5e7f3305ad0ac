"""`serve`, `run` and `demo` as processes: they end when told, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request

import pytest

from vdiff_grpc.client import Client

FREE = ("--address", "127.0.0.1:0", "--gateway-address", "127.0.0.1:0", "--threads", "1")
READY = "Ctrl-C stops both"


def _addresses(output: str) -> tuple[str, str]:
    grpc_address = re.search(r"gRPC\s+(\S+)", output)
    http_address = re.search(r"OpenAI\s+(http://\S+)/v1", output)
    assert grpc_address
    assert http_address
    return grpc_address[1], http_address[1]


def test_ctrl_c_ends_serve_with_0(command) -> None:
    serve = command("serve", "--port", "0", "--threads", "1")
    line = serve.wait_for("serving")
    address = re.search(r"127\.0\.0\.1:\d+", line)
    assert address
    with Client(address[0]) as client:
        client.wait_until_ready(30)
    os.killpg(serve.process.pid, signal.SIGINT)
    assert serve.wait(30) == 0, serve.output
    serve.assert_none_left()


def test_ctrl_c_in_a_terminal_ends_run_with_0_and_leaves_nothing(command) -> None:
    run = command("run", *FREE)
    run.wait_for(READY)
    grpc_address, http_address = _addresses(run.output)
    with Client(grpc_address) as client:
        reply = client.generate("Once upon a time", max_new_tokens=4)
    with urllib.request.urlopen(f"{http_address}/v1/models", timeout=10) as answer:
        assert json.load(answer)["data"][0]["id"] == reply.model
    # The curl line of the banner is meant to be used: it names this address and model.
    assert f"curl {http_address}/v1/completions" in run.output
    assert f'"model": "{reply.model}"' in run.output
    # A terminal's Ctrl-C reaches the whole group.
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait(40) == 0, run.output
    assert "Traceback" not in run.output
    run.assert_none_left()


def test_sigterm_ends_run_with_0_while_it_still_loads(command) -> None:
    run = command("run", *FREE)
    run.wait_for("listening on")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(40) == 0, run.output
    run.assert_none_left()


@pytest.mark.parametrize("name", ["server", "gateway"])
def test_run_fails_and_stops_the_other_when_one_dies(command, name: str) -> None:
    run = command("run", *FREE)
    run.wait_for(READY)
    victims = [pid for pid, line in run.left().items() if f"vdiff_grpc.cli.child {name}" in line]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    assert run.wait(40) == 1
    assert f"the {name} ended by itself" in run.output
    run.assert_none_left()


def test_children_of_a_killed_run_end_too(command) -> None:
    run = command("run", *FREE)
    run.wait_for(READY)
    assert len(run.left()) >= 3
    run.process.kill()
    run.assert_none_left(40)


def test_run_tells_why_a_model_cannot_be_loaded(command) -> None:
    run = command("run", *FREE, "--model", "/nonexistent/model")
    assert run.wait(60) == 1
    assert "/nonexistent/model" in run.output
    assert "the server ended by itself" in run.output
    assert READY not in run.output
    run.assert_none_left()


def test_demo_shows_a_completion_and_exits_without_a_terminal(command) -> None:
    demo = command("demo", "--max-new-tokens", "16")
    assert demo.wait() == 0, demo.output
    assert "step  1  block 1" in demo.output
    assert "forward passes" in demo.output
    assert "Traceback" not in demo.output
    demo.assert_none_left()


def test_demo_stops_its_server_when_told_to(command) -> None:
    demo = command("demo", "--max-new-tokens", "256")
    demo.wait_for("step ")
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.wait(30) == 130, demo.output
    assert "Traceback" not in demo.output
    demo.assert_none_left()
