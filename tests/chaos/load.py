"""Callers who know the right answer: what every test of faults puts its server under."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from vdiff_grpc.client import AsyncClient, ClientError, SpecFields, UnavailableError

# No call is open for so long unless it hangs; generous, as the machine may be busy.
HANG_S = 90.0


def question(number: int) -> SpecFields:
    """A short request of the tiny checkpoint; the seed makes its answer one of its own."""
    return {
        "token_ids": [5, 17, 42, number % 50],
        "max_new_tokens": 24,
        "block_length": 8,
        "temperature": 0.8,
        "seed": number,
        "ignore_eos": True,
    }


class Load:
    """Asks over and over, compares every answer, and counts how the calls ended."""

    def __init__(self, num_questions: int = 8, seed: int = 4) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stopped = asyncio.Event()
        self._random = Random(seed)
        self._questions = [question(number) for number in range(num_questions)]
        self._answers: list[list[int]] = []

    async def learn(self, client: AsyncClient) -> None:
        """What each question's answer is, asked of a server at rest."""
        for asked in self._questions:
            reply = await client.generate(**asked)
            self._answers.append(list(reply.outputs[0].tokens.ids))
        assert len({tuple(answer) for answer in self._answers}) == len(self._answers)

    async def unary(self, client: AsyncClient) -> None:
        number = self._random.randrange(len(self._questions))
        reply = await client.generate(timeout_s=HANG_S, **self._questions[number])
        self._compare(number, list(reply.outputs[0].tokens.ids))

    async def stream(self, client: AsyncClient) -> None:
        number = self._random.randrange(len(self._questions))
        ids: list[int] = []
        finished = False
        events = client.stream(timeout_s=HANG_S, **self._questions[number])
        async with contextlib.aclosing(events):
            async for event in events:
                ids.extend(event.committed.tokens.ids)
                finished = finished or event.HasField("finished")
        if not finished:
            self.wrong.append(f"question {number}: a stream ended OK without finished")
        self._compare(number, ids)

    async def repeat(
        self, name: str, ask: Callable[[AsyncClient], Awaitable[None]], client: AsyncClient
    ) -> None:
        """Asks until `stopped`, and comes back when a server told when to."""
        while not self.stopped.is_set():
            try:
                await ask(client)
                self.outcomes[f"{name} answered"] += 1
            except ClientError as error:
                kind = type(error).__name__
                self.outcomes[f"{name} {kind}"] += 1
                if not isinstance(error, UnavailableError):
                    self.wrong.append(f"{name}: {kind} {error.reason}: {error.message}")
                # a pause, not a wait for something: refused callers must not spin
                await asyncio.sleep(min(0.2, error.retry_after_s or 0.05))

    def num(self, name: str) -> int:
        return self.outcomes[f"{name} answered"]

    def _compare(self, number: int, ids: list[int]) -> None:
        if ids != self._answers[number]:
            self.wrong.append(f"question {number}: {ids} instead of {self._answers[number]}")


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Waits for what has no event of its own."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (it is another process, or thread)
            await asyncio.sleep(0.01)
