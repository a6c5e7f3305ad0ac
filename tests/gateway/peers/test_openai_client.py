"""What openai-python does with our errors, and with our streams down to the bytes.

Errors by their class are in test_errors, test_refusals and test_keys.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import openai
import pytest

from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually

Serve = Callable[..., RunningServer]
GatewayOver = Callable[..., RunningGateway]
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a dog."}]
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": MESSAGES,
    "max_completion_tokens": 24,
    "seed": 7,
}
LONG: dict[str, Any] = {"prompt": [5], "max_tokens": 200, "n": 8, "ignore_eos": True}


class Watched:
    """openai's client, and when it asked and was answered what."""

    def __init__(self, url: str, **options: Any) -> None:
        self.statuses: list[int] = []
        self.asked: list[float] = []
        self.answered: list[float] = []
        self.refused = threading.Event()
        self._http = httpx.Client(event_hooks={"request": [self._ask], "response": [self._answer]})
        self.client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", http_client=self._http, **options
        )

    def _ask(self, request: httpx.Request) -> None:
        self.asked.append(time.monotonic())

    def _answer(self, response: httpx.Response) -> None:
        self.answered.append(time.monotonic())
        self.statuses.append(response.status_code)
        if response.status_code >= 400:
            self.refused.set()

    def complete(self) -> openai.types.Completion:
        return self.client.completions.create(  # type: ignore[no-any-return]
            model="", prompt=[5], max_tokens=4, extra_body={"ignore_eos": True}
        )


@contextmanager
def watched(url: str, **options: Any) -> Iterator[Watched]:
    one = Watched(url, **options)
    with one.client:
        yield one


def test_a_server_that_comes_back_is_waited_for(serve: Serve, gateway_over: GatewayOver) -> None:
    first = serve()
    gateway = gateway_over(first.address)
    first.call(first.server.stop())
    with watched(gateway.url, max_retries=10) as one, ThreadPoolExecutor(1) as thread:
        answer: Future[Any] = thread.submit(one.complete)
        assert one.refused.wait(30)
        serve(port=int(first.address.rpartition(":")[2]))
        assert answer.result(60).choices
    assert one.statuses[0] == 503
    assert one.statuses[-1] == 200


def test_a_busy_server_is_asked_again_after_the_time_it_names(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    server = serve(model="demo", served_model_name=(), max_running_rows=8, max_waiting_rows=0)
    gateway = gateway_over(server.address)
    url = f"{gateway.url}/v1/completions"
    with watched(gateway.url) as one, ThreadPoolExecutor(1) as thread:
        # Diffusing: the first chunk comes at once.
        fields = LONG | {"stream": True, "diffusing": True}
        with httpx.stream("POST", url, json=fields, timeout=30) as held:
            lines = held.iter_lines()
            next(lines)
            answer: Future[Any] = thread.submit(one.complete)
            assert one.refused.wait(30)
        assert answer.result(60).choices
    assert one.statuses == [429, 200]
    # Their own first pause is at most 0.5 s.
    assert one.asked[1] - one.answered[0] >= 1.0


class _Broken(grpc.GenericRpcHandler):
    """Answers every call with INTERNAL."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        def fail(request: bytes, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.INTERNAL, "a secret of the server")

        return grpc.unary_unary_rpc_method_handler(fail)


def test_an_internal_error_is_not_asked_again(gateway_over: GatewayOver) -> None:
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[_Broken()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            url = gateway_over(f"127.0.0.1:{port}").url
            with watched(url) as one, pytest.raises(openai.InternalServerError) as caught:
                one.complete()
        finally:
            server.stop(None).wait()
    assert one.statuses == [500]
    assert caught.value.code == "internal_error"
    assert "secret" not in caught.value.message


def test_a_client_that_waits_no_longer_frees_its_row(
    serve: Serve, gateway_over: GatewayOver
) -> None:
    server = serve(model="demo", served_model_name=())
    gateway = gateway_over(server.address)
    with (
        watched(gateway.url, max_retries=0, timeout=0.1) as one,
        pytest.raises(openai.APITimeoutError),
    ):
        one.client.completions.create(model="", extra_body=LONG, prompt=[5])
    eventually(lambda: server.statistics().requests_aborted == 1)


def test_the_streaming_helper_puts_the_whole_answer_together(client: openai.OpenAI) -> None:
    # It takes an answer that was cut off at max_tokens for an error.
    text = client.chat.completions.create(**CHAT).choices[0].message.content or ""
    fields = CHAT | {"stop": text.split()[4], "logprobs": True}
    with client.chat.completions.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_completion().choices
    (whole,) = client.chat.completions.create(**fields).choices
    assert streamed.message.content == whole.message.content
    assert (streamed.finish_reason, whole.finish_reason) == ("stop", "stop")
    assert streamed.logprobs is not None
    assert whole.logprobs is not None
    assert streamed.logprobs.content == whole.logprobs.content
    assert kinds[0] == "chunk"
    assert {"content.delta", "content.done", "logprobs.content.done"} <= set(kinds)


def test_a_raw_stream_can_be_read_by_lines(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_streaming_response.create
    with create(**CHAT, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.request_id == response.headers["x-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("n", [1, 2])
def test_a_chat_stream_is_what_openai_sends_to_the_letter(http: httpx.Client, n: int) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "n": n}
    reply = http.post("/v1/chat/completions", json=CHAT | options)
    assert reply.content.endswith(b"\n\n")
    events = reply.content[:-2].split(b"\n\n")
    # One line each, nothing but data.
    assert all(e.startswith(b"data: ") and b"\n" not in e and b"\r" not in e for e in events)
    assert events[-1] == b"data: [DONE]"
    *chunks, usage = [json.loads(event[6:]) for event in events[:-1]]

    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    head = ("id", "object", "created", "model", "system_fingerprint")
    assert len({tuple(chunk[key] for key in head) for chunk in (*chunks, usage)}) == 1
    assert usage["object"] == "chat.completion.chunk"

    for index in range(n):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        first, *between, last = mine
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all(set(c["delta"]) == {"content"} and c["delta"]["content"] for c in between)
        assert last["delta"] == {}
        assert [c["finish_reason"] for c in (first, *between)] == [None] * (len(mine) - 1)
        assert last["finish_reason"] in ("stop", "length")
