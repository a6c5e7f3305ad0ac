"""The events of /v1/responses, through the openai client and as bytes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.convert import parse_response
from gateway.errors import ApiError
from gateway.response_replies import ResponseError, ResponseFailed
from gateway.response_stream import ResponseEventStream
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_docs import validator
from tests.gateway.test_responses import FIELDS, LOGPROBS, SAID, SEED, chat, respond
from vdiff_grpc import v1

BODY: dict[str, Any] = FIELDS | {"seed": 1, "stream": True}
# An answer begins and ends with these; deltas and steps stand between.
HEAD = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]
TAIL = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
DELTA = "response.output_text.delta"


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a reply's bytes; each is named by its type."""
    events = []
    blocks = reply.text.split("\n\n")
    assert blocks.pop() == ""
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    return events_of(http.post("/v1/responses", json=BODY | fields))


def test_the_events_come_in_openais_order_and_are_numbered(http: httpx.Client) -> None:
    reply = http.post("/v1/responses", json=BODY)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(reply)
    types = [event["type"] for event in events]
    num_deltas = types.count(DELTA)
    assert num_deltas > 1
    last = f"response.{events[-1]['response']['status']}"
    assert last in ("response.completed", "response.incomplete")
    assert types == [*HEAD, *[DELTA] * num_deltas, *TAIL, last]
    assert not any("diffusion" in event for event in events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        assert next(iter(event)) == "type"
        assert event.get("item_id", events[2]["item"]["id"]) == events[2]["item"]["id"]
    assert [events[i]["response"]["status"] for i in (0, 1)] == ["in_progress"] * 2
    assert {event["response"]["id"] for event in events if "response" in event} == {
        events[0]["response"]["id"]
    }


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_deltas_and_every_later_event_have_the_whole_text(
    client: openai.OpenAI, http: httpx.Client, ignore_eos: bool
) -> None:
    extra = {"ignore_eos": ignore_eos, "stop": "zzz"}
    whole = respond(client, extra_body={"seed": 1} | extra)
    events = stream(http, **extra)
    done, part, item, last = events[-4:]
    text = "".join(event["delta"] for event in events if event["type"] == DELTA)
    assert text == whole.output_text
    assert done["text"] == part["part"]["text"] == item["item"]["content"][0]["text"] == text
    assert last["response"]["output"] == [item["item"]]
    expected = whole.model_dump(exclude={"id", "created_at", "output"}, exclude_unset=True)
    assert expected.items() <= last["response"].items()
    assert last["type"] == ("response.incomplete" if ignore_eos else f"response.{whole.status}")


@pytest.mark.parametrize("fields", [{}, {"include": LOGPROBS, "top_logprobs": 2}], ids=str)
def test_every_event_passes_openais_own_types_strictly(
    http: httpx.Client, fields: dict[str, Any]
) -> None:
    # The one that pydantic finds must be the one that its type means, with nothing left over.
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in stream(http, **fields):
        parsed = adapter.validate_json(json.dumps(event), strict=True)
        assert type(parsed).model_fields["type"].annotation.__args__ == (event["type"],)  # type: ignore[union-attr]
        assert not parsed.model_extra


def test_every_event_is_what_the_document_says(http: httpx.Client) -> None:
    events = validator(http.get("/openapi.json").json(), "ResponseEvent")
    for event in stream(http, diffusing=True, include=LOGPROBS):
        events.validate(event)


@pytest.mark.parametrize("strategy", ["fixed_schedule", "wino"])
def test_probabilities_come_with_the_deltas_and_whole_at_the_end(
    client: openai.OpenAI, http: httpx.Client, strategy: str
) -> None:
    extra = {"strategy": {"type": strategy}}
    asked = {"include": LOGPROBS, "top_logprobs": 2}
    whole = respond(client, extra_body={"seed": 1} | extra, **asked).model_dump()
    events = stream(http, **asked, **extra)
    told: list[Any] = []
    for event in events:
        told += event["logprobs"] if event["type"] == DELTA else []
    assert told
    assert told == whole["output"][0]["content"][0]["logprobs"]
    assert told == events[-4]["logprobs"] == events[-3]["part"]["logprobs"]
    assert told == events[-1]["response"]["output"][0]["content"][0]["logprobs"]


def test_the_client_streams(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**FIELDS, **SEED, stream=True))
    text = "".join(event.delta for event in events if event.type == DELTA)
    assert text == respond(client).output_text
    assert [event.type for event in events[:4]] == HEAD


async def test_the_asynchronous_client_streams_the_same(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    text = ""
    async for event in await aclient.responses.create(**FIELDS, **SEED, stream=True):
        text += event.delta if event.type == DELTA else ""
    assert text == respond(client).output_text


@pytest.mark.parametrize("diffusing", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_the_clients_stream_helper_reads_it_whole(
    client: openai.OpenAI, diffusing: bool, ended: bool
) -> None:
    extra: dict[str, Any] = {"seed": 1, "diffusing": diffusing, "ignore_eos": True}
    if ended:
        full = respond(client, extra_body={"seed": 1, "ignore_eos": True}).output_text
        extra["stop"] = full.split()[2]
    snapshots = []
    with client.responses.stream(**FIELDS, extra_body=extra) as events:
        for event in events:
            if event.type == DELTA:
                snapshots.append(event.snapshot)
        # The helper knows no other end than response.completed.
        if ended:
            last = events.get_final_response()
            assert last.status == "completed"
            assert last.output_text == snapshots[-1]
        else:
            assert event.type == "response.incomplete"
            assert event.response.output_text == snapshots[-1]
    assert snapshots == sorted(snapshots, key=len)
    # A step is an empty delta.
    assert (len(snapshots) > len(set(snapshots))) == diffusing


async def test_the_asynchronous_helper_does_too(aclient: openai.AsyncOpenAI) -> None:
    extra = {"seed": 1, "diffusing": True, "stop": "e"}
    async with aclient.responses.stream(**FIELDS, extra_body=extra) as events:
        response = await events.get_final_response()
    assert response.status == "completed"


def test_applying_the_diffusing_events_gives_the_final_canvas(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    extra = {"seed": 1, "ignore_eos": True, "block_length": 24}
    plain = respond(client, extra_body=extra, include=LOGPROBS)
    stream = client.responses.create(
        **FIELDS, include=LOGPROBS, stream=True, extra_body=extra | {"diffusing": True}
    )
    canvas: list[int] = []
    text = ""
    kinds = []
    for event in stream:
        if event.type != DELTA:
            continue
        text += event.delta
        # openai-python keeps what it does not know.
        diffusion = getattr(event, "diffusion", None)
        if diffusion is None:
            continue
        assert event.delta == ""
        kinds.append(diffusion["kind"])
        match diffusion["kind"]:
            case "start":
                canvas = diffusion["token_ids"]
                prompt = diffusion["spans"][0]
                assert canvas[prompt["length"] :] == [diffusion["mask_token_id"]] * 24
            case "unmask":
                for position, token in zip(
                    diffusion["positions"], diffusion["token_ids"], strict=True
                ):
                    canvas[position] = token
            case "end":
                assert diffusion["seed"] == 1
                assert diffusion["forward_passes"] > 1
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert kinds.count("unmask") > 1
    # The steps do not disturb the text.
    assert text == plain.output_text
    # The chunks of chat show the same canvas.
    shown = [
        chunk.diffusion
        for chunk in chat(
            client, ("user", SAID), stream=True, extra_body=extra | {"diffusing": True}
        )
        if hasattr(chunk, "diffusion")
    ]
    again = shown[0]["token_ids"]
    for step in shown[1:-1]:
        for position, token in zip(step["positions"], step["token_ids"], strict=True):
            again[position] = token
    assert canvas == again


def test_a_client_that_leaves_frees_its_row(
    http: httpx.Client, gateway: RunningGateway, demo: RunningServer
) -> None:
    for streamed in (False, True):
        demo.wait_idle()
        before = demo.statistics()
        fields = BODY | {"stream": streamed, "max_output_tokens": 400, "ignore_eos": True}
        fields |= {"steps": 400}
        body = httpx.Request("POST", gateway.url, json=fields).read()
        host, port = gateway.url.removeprefix("http://").split(":")
        head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            eventually(lambda: demo.statistics().forward_passes > before.forward_passes)  # noqa: B023
        eventually(lambda: demo.statistics().requests_aborted == before.requests_aborted + 1)  # noqa: B023
        assert demo.statistics().running_rows == 0
        assert demo.statistics().forward_passes - before.forward_passes < 400
    assert http.post("/v1/responses", json={"input": "x"}).status_code == 200  # the bystander


@pytest.fixture
def dying(
    serve: Callable[..., RunningServer], gateway_over: Callable[..., RunningGateway]
) -> tuple[RunningServer, RunningGateway]:
    server = serve(model="demo", served_model_name=("demo",))
    return server, gateway_over(server.address)


LONG = BODY | {"max_output_tokens": 400, "steps": 400, "ignore_eos": True, "diffusing": True}


def test_a_server_that_dies_under_a_stream_is_an_error_and_a_failed_response(
    dying: tuple[RunningServer, RunningGateway],
) -> None:
    server, gateway = dying
    with httpx.stream("POST", f"{gateway.url}/v1/responses", json=LONG, timeout=30) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        first = json.loads([next(lines), next(lines)][1].removeprefix("data: "))
        server.call(server.server.stop(at_once=True))
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    before, error, failed = map(json.loads, data[-3:])
    assert (error["type"], error["code"], error["param"]) == ("error", "unavailable", None)
    assert error["error"]["message"] == error["message"]
    assert error["error"]["type"] == "server_error"
    assert failed["type"] == "response.failed"
    assert failed["response"]["id"] == first["response"]["id"]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}
    assert [e["sequence_number"] - before["sequence_number"] for e in (error, failed)] == [1, 2]
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in (error, failed):
        parsed = adapter.validate_json(json.dumps(event), strict=True)
        assert parsed.type == event["type"]


def test_the_client_raises_for_an_error_event(
    dying: tuple[RunningServer, RunningGateway],
) -> None:
    server, gateway = dying
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        extra = {k: LONG[k] for k in ("steps", "ignore_eos", "diffusing")}
        stream = client.responses.create(
            model="demo", input="x", max_output_tokens=400, stream=True, extra_body=extra
        )
        next(iter(stream))
        server.call(server.server.stop(at_once=True))
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "unavailable"


def test_a_partial_answer_is_incomplete(
    demo: RunningServer, gateway_over: Callable[..., RunningGateway]
) -> None:
    gateway = gateway_over(demo.address, request_timeout_s=2.0)
    fields = LONG | {"partial_on_deadline": True, "diffusing": False, "cfg_scale": 1.0}
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        reply = http.post("/v1/responses", json=fields | {"stream": False})
        assert reply.status_code == 200, reply.text
        last = events_of(http.post("/v1/responses", json=fields))[-1]
        assert last["type"] == "response.incomplete"
        for response in (reply.json(), last["response"]):
            assert response["status"] == "incomplete"
            assert response["usage"]["output_tokens"] < 400


def test_a_stream_without_its_end_fails_and_a_limit_has_openais_code() -> None:
    stream = ResponseEventStream(parse_response(json.dumps(BODY).encode()))
    stream.start([v1.Started(model="demo")])
    with pytest.raises(ApiError) as caught:
        stream.finish()
    assert caught.value.status == 500
    error, failed = stream.fail(ApiError(429, "full", kind="rate_limit_error").reply)
    assert isinstance(failed, ResponseFailed)
    assert failed.response.error == ResponseError("rate_limit_exceeded", "full")
    assert failed.sequence_number == error.sequence_number + 1
