"""OpenAI through smg, the router, in front of two of our servers, as docs/routers.md says.

smg has the tokenizer and the chat template (it fetches them from a server), asks our servers with
token ids over vLLM's contract, and makes the text itself. So its answers must be those of our own
gateway, which leaves all that to the server.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.chaos.load import until
from tests.chaos.processes import ServerProcess
from tests.gateway.conftest import RunningGateway
from tests.service.smg import ROOT, Smg
from vdiff_grpc.client import Client

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

MODEL = "vdiff-demo"
QUESTION = [{"role": "user", "content": "Tell me a story about a dog and a ball."}]
TEXT = (ROOT / "docs" / "routers.md").read_text()
DOCUMENTED = re.findall(r"^(vdiff-grpc serve|smg launch) (.+)$", TEXT, re.MULTILINE)


@dataclass
class Fleet:
    servers: list[ServerProcess]
    smg: Smg
    own: openai.OpenAI  # our gateway
    router: openai.OpenAI

    def num_generated(self, server: ServerProcess) -> int:
        return server.log.read_text().count("rpc=VllmEngine/Generate")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("smg")
    serves = [shlex.split(flags) for command, flags in DOCUMENTED if command == "vdiff-grpc serve"]
    (launch,) = [flags for command, flags in DOCUMENTED if command == "smg launch"]
    ends: list[Any] = []
    try:
        for flags in serves:
            at = flags.index("--port")
            ends.append(ServerProcess(folder, *flags[:at], *flags[at + 2 :]))
            launch = launch.replace(f"127.0.0.1:{flags[at + 1]}", ends[-1].address)
        servers = list(ends)
        for server in servers:
            server.wait_ready()
        smg = Smg(folder, shlex.split(launch))
        ends.append(smg)
        smg.wait_healthy(2)
        gateway = RunningGateway(servers[0].address)
        clients = [
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
            for url in (gateway.url, smg.url)
        ]
        try:
            yield Fleet(servers, smg, *clients)
        finally:
            for client in clients:
                client.close()
            gateway.close()
    finally:
        for process in ends:
            process.kill()


def ask(client: openai.OpenAI, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, "messages": QUESTION} | options
    return client.chat.completions.create(model=MODEL, **options)


def streamed(client: openai.OpenAI, **options: Any) -> tuple[list[str], str | None, Any]:
    """The pieces of the text, the finish reason, and the usage."""
    pieces, reason, usage = [], None, None
    usage_too = {"include_usage": True}
    for chunk in ask(client, stream=True, stream_options=usage_too, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
    return [piece for piece in pieces if piece], reason, usage


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5, "seed": 11},
    {"temperature": 0.5, "seed": 11, "top_p": 0.5},
    # to the model's own end
    {"messages": [{"role": "user", "content": "Running totals of 91202112."}]},
    {"messages": [{"role": "system", "content": "Be short."}, *QUESTION]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "greedy")
def test_a_chat_is_answered_as_by_our_own_gateway(fleet: Fleet, options: dict[str, Any]) -> None:
    own = ask(fleet.own, **options)
    counts = (own.usage.prompt_tokens, own.usage.completion_tokens)
    for _ in fleet.servers:  # by either of them
        routed = ask(fleet.router, **options)
        assert routed.choices[0].message.content == own.choices[0].message.content
        assert routed.choices[0].finish_reason == own.choices[0].finish_reason
        assert (routed.usage.prompt_tokens, routed.usage.completion_tokens) == counts
        pieces, reason, usage = streamed(fleet.router, **options)
        assert "".join(pieces) == own.choices[0].message.content
        assert len(pieces) > 1
        assert reason == own.choices[0].finish_reason
        assert (usage.prompt_tokens, usage.completion_tokens) == counts
    assert all(fleet.num_generated(server) for server in fleet.servers)


@pytest.mark.parametrize("cut", [(0, 3), (9, 23), (20, 21)])
def test_a_stop_string_cuts_where_our_own_gateway_cuts(fleet: Fleet, cut: tuple[int, int]) -> None:
    stop = ask(fleet.own).choices[0].message.content[slice(*cut)]
    own = ask(fleet.own, stop=stop).choices[0]
    assert own.finish_reason == "stop"
    routed = ask(fleet.router, stop=stop).choices[0]
    assert (routed.message.content or "", routed.finish_reason) == (own.message.content, "stop")
    pieces, reason, _ = streamed(fleet.router, stop=stop)
    assert ("".join(pieces), reason) == (own.message.content, "stop")


def test_the_documented_call_is_answered(fleet: Fleet) -> None:
    (command,) = re.findall(r"^curl (.+)$", TEXT, re.MULTILINE)
    command = command.replace("http://127.0.0.1:30000", fleet.smg.url)
    done = subprocess.run(["curl", *shlex.split(command)], capture_output=True, check=True)
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    question = [{"role": "user", "content": "Tell me a story"}]
    own = ask(fleet.own, messages=question, max_tokens=openai.omit)
    assert answer == own.choices[0].message.content


def test_several_answers_and_their_logprobs_come_through(fleet: Fleet) -> None:
    options = {"n": 2, "temperature": 0.5, "seed": 3, "logprobs": True, "top_logprobs": 2}
    own, routed = ask(fleet.own, **options), ask(fleet.router, **options)
    assert own.choices[0].message.content != own.choices[1].message.content
    for mine, theirs in zip(own.choices, routed.choices, strict=True):
        assert theirs.message.content == mine.message.content
        for one, other in zip(mine.logprobs.content, theirs.logprobs.content, strict=True):
            assert other.token == one.token
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
            tops = [[top.token for top in token.top_logprobs] for token in (one, other)]
            assert tops[0] == tops[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frequency_penalty": 0.5}, "sampling_params.frequency_penalty (0.5) cannot be set"),
        ({"response_format": {"type": "json_object"}}, "sampling_params.json_schema"),
        ({"max_tokens": 4000}, "max_tokens (4000) exceeds the model's limit (512)"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_we_refuse_is_a_bad_request_there(
    fleet: Fleet, options: dict[str, Any], words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(words)):
        ask(fleet.router, stream=stream, **options)


def test_a_caller_who_leaves_the_router_frees_the_row(fleet: Fleet) -> None:
    def aborted() -> int:
        total = 0
        for server in fleet.servers:
            with Client(server.address) as client:
                total += client.server_info().statistics.requests_aborted
        return total

    before = aborted()
    options = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
    with ask(fleet.router, stream=True, **options) as stream:
        next(iter(stream))
    asyncio.run(until(lambda: aborted() == before + 1))


class Load:
    """Asks through smg over and over, and counts how the calls end."""

    def __init__(self, url: str, answer: str, **options: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stopped = asyncio.Event()
        self._url, self._answer, self._options = url, answer, options

    async def repeat(self, *, stream: bool) -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            while not self.stopped.is_set():
                kind = "stream" if stream else "unary"
                try:
                    text = await self._ask(client, stream)
                    outcome = "answered" if text == self._answer else f"wrong: {text!r}"
                except (openai.APIError, httpx.TransportError) as error:
                    outcome = f"failed: {type(error).__name__}"
                self.outcomes[f"{kind} {outcome}"] += 1

    async def _ask(self, client: openai.AsyncOpenAI, stream: bool) -> str:
        options: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0} | self._options
        if not stream:
            reply = await client.chat.completions.create(**options)
            return reply.choices[0].message.content or ""
        chunks = await client.chat.completions.create(stream=True, **options)
        pieces = [c.choices[0].delta.content or "" async for c in chunks if c.choices]
        return "".join(pieces)

    async def goes_on(self, number: int = 12) -> None:
        goal = self.outcomes.total() + number
        await until(lambda: self.outcomes.total() >= goal, 120)


async def test_a_server_leaves_and_comes_back_and_no_call_fails(fleet: Fleet) -> None:
    load = Load(
        fleet.smg.url, ask(fleet.own, max_tokens=8).choices[0].message.content, max_tokens=8
    )
    leaving = fleet.servers[1]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(load.repeat(stream=True))
            tasks.create_task(load.repeat(stream=False))
        try:
            await load.goes_on()
            assert await asyncio.to_thread(leaving.leave) == 0, leaving.log.read_text()[-2000:]
            await load.goes_on()
            before = fleet.num_generated(leaving)
            leaving.start()
            await asyncio.to_thread(leaving.wait_ready)
            await until(lambda: fleet.num_generated(leaving) > before, 120)
            await load.goes_on()
        finally:
            load.stopped.set()
    print(dict(load.outcomes))
    assert set(load.outcomes) == {"stream answered", "unary answered"}, load.outcomes


async def test_of_a_server_that_is_killed_only_open_streams_break(fleet: Fleet) -> None:
    """smg asks again elsewhere, but not what has already begun to answer."""
    killed = fleet.servers[1]
    options = {"max_tokens": 64, "extra_body": {"ignore_eos": True}}
    answer = ask(fleet.own, **options).choices[0].message.content
    load = Load(fleet.smg.url, answer, **options)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(load.repeat(stream=True))
            tasks.create_task(load.repeat(stream=False))
        try:
            await load.goes_on(4)
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait()
            await load.goes_on(24)
        finally:
            load.stopped.set()
    killed.start()
    await asyncio.to_thread(killed.wait_ready)
    await asyncio.to_thread(fleet.smg.wait_healthy, 2)
    print(dict(load.outcomes))
    broken = load.outcomes.pop("stream failed: APIError", 0)
    assert broken <= 4, "each had one call open"
    assert set(load.outcomes) == {"stream answered", "unary answered"}, load.outcomes
