"""A second process that keeps many SSE streams of one gateway open, and judges every answer.

    python -m tests.chaos.streams URL NUM_STREAMS SECONDS

Each stream has a marker: its request id, which must come back, and the tokens that its own seed
gives, learnt before at rest. Prints one JSON object: how the streams ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import httpx

_NUM_QUESTIONS = 64
_TIMEOUT_S = 60


def question(number: int) -> dict[str, Any]:
    """A request of the tiny checkpoint, which has no text: its tokens are told with logprobs."""
    return {
        "prompt": [5, 17, 42, number % 50],
        "max_tokens": 24,
        "block_length": 8,
        "temperature": 0.8,
        "seed": number,
        "ignore_eos": True,
        "logprobs": 0,
    }


async def load(url: str, num_streams: int, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=num_streams + 1, max_keepalive_connections=num_streams)
    outcomes: Counter[str] = Counter()
    open_now = most_open = 0
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_TIMEOUT_S) as http:
        answers = []
        for number in range(_NUM_QUESTIONS):
            reply = await http.post("/v1/completions", json=question(number))
            answers.append(reply.json()["choices"][0]["logprobs"]["tokens"])
        assert len({tuple(answer) for answer in answers}) == _NUM_QUESTIONS
        end = time.monotonic() + seconds

        async def caller(number: int) -> None:
            nonlocal open_now, most_open
            rounds = 0
            while time.monotonic() < end:
                marker = f"stream-{number}-{rounds}"
                rounds += 1
                asked = (number + rounds) % _NUM_QUESTIONS
                open_now += 1
                most_open = max(most_open, open_now)
                try:
                    outcomes[await _one(http, marker, question(asked), answers[asked])] += 1
                except httpx.HTTPError as error:
                    outcomes[f"failed: {type(error).__name__}"] += 1
                finally:
                    open_now -= 1

        await asyncio.gather(*(caller(number) for number in range(num_streams)))
    return {"outcomes": outcomes, "most_open": most_open}


async def _one(
    http: httpx.AsyncClient, marker: str, fields: dict[str, Any], answer: list[str]
) -> str:
    tokens: list[str] = []
    last = ""
    async with http.stream(
        "POST", "/v1/completions", json=fields | {"stream": True}, headers={"x-request-id": marker}
    ) as reply:
        if reply.status_code != 200:
            return f"failed: {reply.status_code}"
        if reply.headers["x-request-id"] != marker:
            return "wrong marker"
        async for line in reply.aiter_lines():
            last = line or last
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return f"failed: {event['error']['code']}"
                for choice in event["choices"]:
                    tokens += (choice["logprobs"] or {"tokens": []})["tokens"]
    if last != "data: [DONE]":
        return "cut short"
    return "right" if tokens == answer else "wrong tokens"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
