"""The embedded model, through the engine that serves it: its task, its replies, its files."""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path

import pytest

from training.tasks import HOLES, draw_digits, draw_row, row_ask, row_is_right, task_text
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, Finished, FinishReason
from vdiff_grpc.engine.prompt_types import ChatMessage, ChatPrompt, Prompt, TextPrompt
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

DEMO = Path(str(resources.files("vdiff_grpc") / "assets" / "demo"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(str(DEMO), device="cpu", threads=1))


def chat(words: str, role: str = "user") -> ChatPrompt:
    return ChatPrompt((ChatMessage(role, words),))


def together(engine: Engine, prompts: list[Prompt], **params: object) -> list[Finished]:
    """All prompts at once; their ends in the order of the prompts."""
    for key, prompt in enumerate(prompts):
        request = Request(prompt, RequestParams(**params))  # type: ignore[arg-type]
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))
    ends: dict[int, Event] = {}
    while engine.has_work:
        ends |= {key: event for key, event in engine.step() if isinstance(event, Finished)}
    return [ends[key] for key in range(len(prompts))]  # type: ignore[misc]


def test_running_totals_are_right_at_one_token_per_forward(engine: Engine) -> None:
    """Held-out instances by the rule of training/tasks.py; the mark is 95 %."""
    rng = random.Random(1)
    instances = [task_text(draw_digits(rng, want_held_out=True)) for _ in range(40)]
    prompts: list[Prompt] = [chat(ask) for ask, _ in instances]
    ends = together(engine, prompts, max_new_tokens=32, temperature=0.0)
    right = [end.outputs[0].text == reply for end, (_, reply) in zip(ends, instances, strict=True)]
    assert sum(right) >= 38


def filled(engine: Engine, **params: object) -> int:
    """How many of 48 held-out rows are filled in rightly."""
    rng = random.Random(2)
    rows = [draw_row(rng, want_held_out=True, holes=holes) for holes in HOLES for _ in range(16)]
    prompts: list[Prompt] = [chat(row_ask(row)) for row in rows]
    ends = together(engine, prompts, max_new_tokens=16, temperature=0.0, **params)
    return sum(row_is_right(row, end.outputs[0].text) for row, end in zip(rows, ends, strict=True))


def test_every_digit_occurs_once_at_one_token_per_forward(engine: Engine) -> None:
    """The mark is 95 %."""
    assert filled(engine) >= 45


def test_four_tokens_per_forward_put_a_digit_twice(engine: Engine) -> None:
    """What the task is there for: tokens of one step do not see each other."""
    assert filled(engine, steps=4) < 36


def test_chat_replies_end_by_themselves(engine: Engine) -> None:
    asks = [
        "Tell me a story about a dog and a ball.",
        "Tell me a story about a cat.",
        "What is a garden?",
        "What does it mean to run?",
        "Running totals of 91202112.",
    ]
    prompts: list[Prompt] = [chat(ask) for ask in asks]
    for end in together(engine, prompts, seed=3):
        assert end.outputs[0].finish_reason is FinishReason.STOP
        assert end.outputs[0].tokens.ids


def test_a_system_message_is_never_dropped(engine: Engine) -> None:
    assert engine.tokenizer is not None
    for messages in (
        [ChatMessage("system", "Be kind."), ChatMessage("user", "Hi.")],
        [ChatMessage("user", "Hi."), ChatMessage("system", "Be kind.")],
        [ChatMessage("system", "Be kind.")],
    ):
        ids = engine.tokenizer.encode_chat(messages)
        assert b"Be kind." in b"".join(engine.tokenizer.token_bytes(i) for i in ids)


def test_no_special_token_but_an_end_is_ever_generated(engine: Engine) -> None:
    assert engine.tokenizer is not None
    prompts: list[Prompt] = [TextPrompt("Once upon a time")] * 4
    ends = together(engine, prompts, max_new_tokens=48, steps=6, temperature=2.0)
    drawn = {i for end in ends for i in end.outputs[0].tokens.ids}
    assert len(drawn) > 50
    assert not drawn & engine.tokenizer.special_ids


def test_the_embedded_files_stay_below_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) < 40e6


def test_the_twin_shares_the_vocabulary() -> None:
    ours, twins = ((path / "tokenizer.json").read_bytes() for path in (DEMO, DEMO / "twin"))
    assert ours == twins
