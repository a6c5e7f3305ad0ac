"""How serving.py asks a server: one piece of work over gRPC or HTTP, and what the server counted.

Everything is the fixed schedule at temperature 0 with no early end.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from benchmarks.serving_peers import prompt_text
from benchmarks.serving_work import Work
from benchmarks.wire import Connection, request
from vdiff_grpc import v1

_LIMIT_S = 600.0
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Answer:
    """text: without space around it, which decoders of tokens treat differently."""

    text: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the server's start: calls of the model, and canvases in them."""

    steps: int
    forwards: int

    def since(self, other: Counts) -> Counts:
        return Counts(self.steps - other.steps, self.forwards - other.forwards)


class Server(Protocol):
    """name: as the tables call it. `ask` may be called from several threads."""

    name: str

    def ask(self, work: Work) -> Answer: ...

    def counts(self) -> Counts: ...


class Grpc:
    def __init__(self, name: str, address: tuple[str, int]) -> None:
        self.name = name
        self._channel = grpc.insecure_channel("{}:{}".format(*address))
        self._stub = v1.GenerationServiceStub(self._channel)
        self._info = v1.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def ask(self, work: Work) -> Answer:
        message = v1.ChatMessage(role=v1.ROLE_USER, content=prompt_text(work.prompt))
        spec = v1.GenerationSpec(
            chat=v1.ChatInput(messages=[message]),
            sampling=v1.SamplingParams(max_new_tokens=work.new, temperature=0, ignore_eos=True),
            diffusion=v1.DiffusionParams(
                block_length=work.block, steps=work.steps, fixed_schedule=v1.FixedSchedule()
            ),
        )
        answer = self._stub.Generate(v1.GenerateRequest(spec=spec), timeout=_LIMIT_S)
        usage = answer.usage
        return Answer(answer.outputs[0].text.strip(), usage.prompt_tokens, usage.completion_tokens)

    def counts(self) -> Counts:
        info = self._info.GetServerInfo(v1.GetServerInfoRequest(), timeout=_LIMIT_S)
        return Counts(info.statistics.engine_steps, info.statistics.forward_passes)

    def wait(self) -> None:
        """Until the model serves."""
        end = time.monotonic() + _LIMIT_S
        while time.monotonic() < end:
            try:
                info = self._info.GetServerInfo(
                    v1.GetServerInfoRequest(), timeout=5, wait_for_ready=True
                )
            except grpc.RpcError:
                continue
            if info.state == v1.ENGINE_STATE_READY:
                return
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} is not ready after {_LIMIT_S:g} s")


class Http:
    """OpenAI's chat over HTTP, a connection for each request.

    more: what the server wants in a body beside OpenAI's fields. counted: who knows the counts.
    """

    def __init__(
        self, name: str, address: tuple[str, int], model: str, counted: Grpc | None = None
    ) -> None:
        self.name = name
        self._address = address
        self._model = model
        self._counted = counted

    def ask(self, work: Work) -> Answer:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt_text(work.prompt)}],
            "temperature": 0,
            "max_tokens": work.new,
            "block_length": work.block,
        }
        if self._counted:
            body |= {
                "steps": work.steps,
                "ignore_eos": True,
                "strategy": {"type": "fixed_schedule"},
            }
        else:
            body |= {"num_denoising_steps": work.steps}
        with Connection(self._address, timeout_s=_LIMIT_S) as connection:
            answer = connection.ask(request(_CHAT, json.dumps(body).encode()))
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {answer.status} {answer.body.decode()}")
        said = json.loads(answer.body)
        usage = said["usage"]
        return Answer(
            said["choices"][0]["message"]["content"].strip(),
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )

    def counts(self) -> Counts:
        if self._counted:
            return self._counted.counts()
        with Connection(self._address) as connection:
            page = connection.ask(request("/metrics")).body.decode()
        return Counts(
            _metric(page, "dlmserve_denoising_step_duration_seconds_count"),
            _metric(page, "dlmserve_step_batch_size_sum"),
        )


def closed_loop(server: Server, clients: int, works: Sequence[Work]) -> tuple[float, int]:
    """So many clients, each with its next request when its last is answered: seconds, tokens."""
    with ThreadPoolExecutor(clients) as pool:
        begin = time.perf_counter()
        tokens = sum(answer.tokens for answer in pool.map(server.ask, works))
        return time.perf_counter() - begin, tokens


def open_loop(server: Server, works: Sequence[Work], arrivals_s: Sequence[float]) -> list[float]:
    """Seconds from when each request was due to its answer, however many are under way."""

    def ask(work: Work, due: float) -> float:
        time.sleep(max(0.0, due - time.perf_counter()))
        server.ask(work)
        return time.perf_counter() - due

    with ThreadPoolExecutor(len(works)) as pool:
        begin = time.perf_counter() + 0.05  # for the threads to be there
        return list(pool.map(ask, works, [begin + at_s for at_s in arrivals_s]))


def _metric(page: str, name: str) -> int:
    found = re.search(rf"^{name} (\S+)", page, re.MULTILINE)
    return int(float(found[1])) if found else 0
