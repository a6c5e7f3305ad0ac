"""The gate: every field against its limit, by name and value."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.tools import TINY
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.types import (
    ChatMessage,
    ChatPrompt,
    ConfidenceThreshold,
    EngineConfig,
    FixedSchedule,
    Hole,
    InfillPrompt,
    Prompt,
    Request,
    RequestParams,
    TextPrompt,
    TokensPrompt,
)
from vdiff_grpc.engine.validation import limits_for, output_seed, resolve
from vdiff_grpc.errors import CheckpointError, InvalidRequestError

INFO = describe(str(TINY))
LIMITS = limits_for(EngineConfig(str(TINY), max_step_tokens=150), INFO)
PROMPT = TokensPrompt((1, 2, 3))


def ask(prompt: Prompt = PROMPT, **params: Any) -> Any:
    return resolve(Request(prompt, RequestParams(**params)), INFO, LIMITS, None)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"max_new_tokens": 0}, "sampling.max_new_tokens", "(0) must be at least 1"),
    ({"max_new_tokens": 100000}, "sampling.max_new_tokens", "(100000) exceeds the model's limit (128)"),
    ({"max_new_tokens": 126}, "sampling.max_new_tokens", "(126) exceeds the model's limit (128 - 3 prompt tokens)"),
    ({"temperature": -0.5}, "sampling.temperature", "(-0.5) is not in [0, 2]"),
    ({"temperature": float("nan")}, "sampling.temperature", "(nan)"),
    ({"temperature": float("inf")}, "sampling.temperature", "(inf)"),
    ({"top_p": 0.0}, "sampling.top_p", "(0) is not in (0, 1]"),
    ({"top_p": 1.1}, "sampling.top_p", "(1.1)"),
    ({"top_k": 98}, "sampling.top_k", "(98) exceeds the vocabulary (97)"),
    ({"seed": 2**64}, "sampling.seed", str(2**64)),
    ({"n": 0}, "sampling.n", "(0)"),
    ({"n": 9}, "sampling.n", "(9) exceeds the server's limit (8)"),
    ({"block_length": 0}, "diffusion.block_length", "(0)"),
    ({"block_length": 129}, "diffusion.block_length", "(129)"),
    ({"steps": 0}, "diffusion.steps", "(0)"),
    ({"steps": 3, "max_new_tokens": 64, "block_length": 8}, "diffusion.steps", "(3) is fewer than the blocks (8"),
    ({"steps": 65, "max_new_tokens": 64}, "diffusion.steps", "(65) exceeds the generated positions (64)"),
    ({"steps": 8, "strategy": ConfidenceThreshold()}, "diffusion.steps", "(8) cannot be set with confidence_threshold"),
    ({"cfg_scale": 17.0}, "diffusion.cfg_scale", "(17) is not in [0, 16]"),
    ({"cfg_scale": 1.0, "max_new_tokens": 80}, "diffusion.cfg_scale", "twice 83 tokens exceed"),
    ({"strategy": ConfidenceThreshold(0.0)}, "diffusion.confidence_threshold.threshold", "(0) is not in (0, 1]"),
    ({"strategy": ConfidenceThreshold(float("nan"))}, "diffusion.confidence_threshold.threshold", "(nan)"),
    ({"stop_token_ids": (97,)}, "sampling.stop.token_ids[0]", "(97)"),
    ({"stop_token_ids": (96,)}, "sampling.stop.token_ids[0]", "(96) is the mask token"),
    ({"stop_token_ids": (95,), "ignore_eos": True}, "sampling.stop.token_ids[0]", "ignore_eos"),
    ({"stop_token_ids": tuple(range(17))}, "sampling.stop.token_ids", "17 token ids; the limit is 16"),
    ({"stop_strings": ("",)}, "sampling.stop.strings[0]", "0 characters"),
    ({"stop_strings": ("x" * 257,)}, "sampling.stop.strings[0]", "257 characters"),
    ({"prompt": TokensPrompt(())}, "token_ids.ids", "empty"),
    ({"prompt": TokensPrompt((1, 97))}, "token_ids.ids[1]", "(97) is not in the vocabulary of 97"),
    ({"prompt": TokensPrompt((1, 96))}, "token_ids.ids", "mask token (id 96)"),
    ({"prompt": TokensPrompt((1,) * 128)}, "token_ids.ids", "(128 tokens) leaves no room"),
    ({"prompt": TextPrompt("hello")}, "text", "no tokenizer"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi"),))}, "chat", "no chat template"),
    ({"prompt": ChatPrompt(())}, "chat.messages", "empty"),
    ({"prompt": InfillPrompt(((1, 2),))}, "infill.segments", "no hole"),
    ({"prompt": InfillPrompt((Hole(0),))}, "infill.segments[0].hole.length", "(0)"),
    ({"prompt": InfillPrompt((Hole(4),)), "max_new_tokens": 4}, "sampling.max_new_tokens", "(4) cannot be set with infill"),
    ({"prompt": InfillPrompt((Hole(100), Hole(100)))}, "infill.segments", "(200) exceeds"),
    ({"prompt": InfillPrompt((Hole(2), (1,), Hole(2))), "stop_token_ids": (5,)}, "sampling.stop", "several holes (2)"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "field", "words"), BAD, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_refused_by_field_value_and_limit(
    params: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ask(**params)
    found = {v.field: v.description for v in caught.value.violations}
    assert field in found
    assert words in found[field]


def test_a_stride_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"stride \(0\) must be at least 1"):
        resolve(Request(PROMPT, stride=0), INFO, LIMITS, None)


def test_a_canvas_without_room_is_the_operators_error() -> None:
    with pytest.raises(CheckpointError, match=r"max_canvas_tokens \(1\)"):
        limits_for(EngineConfig(str(TINY), max_canvas_tokens=1), INFO)


def test_all_violations_are_told_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ask(temperature=3.0, top_p=2.0, n=0)
    assert len(caught.value.violations) == 3


def test_explicit_zeros_stay_zeros_and_silence_gets_the_defaults() -> None:
    params = ask(temperature=0.0, top_k=0, seed=0).params
    assert (params.temperature, params.top_k, params.seed) == (0.0, 0, 0)
    assert params.max_new_tokens == 125, "the default of 128 gives way to the prompt"
    assert (params.block_length, params.steps, params.n) == (32, 125, 1)
    assert params.strategy == FixedSchedule()
    assert ask().params.seed != ask().params.seed


def test_lengths_that_do_not_divide_are_not_refused() -> None:
    params = ask(max_new_tokens=13, block_length=5, steps=7).params
    assert (params.block_length, params.steps) == (5, 7)
    assert ask(max_new_tokens=3, block_length=50).params.block_length == 3


def test_the_first_output_has_the_requests_seed_and_the_others_their_own() -> None:
    assert ask(seed=2**64 - 1, n=1).seeds == (2**64 - 1,)
    seeds = ask(seed=5, n=8).seeds
    assert seeds[0] == 5
    assert len(set(seeds)) == 8
    assert all(seed < 2**53 for seed in seeds[1:])
    assert seeds[3] == output_seed(5, 3)
