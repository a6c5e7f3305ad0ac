"""Keyword arguments become the contract's fields; what is not said is not sent."""

from __future__ import annotations

import argparse
from typing import get_args

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration

from gateway.convert import CACHES
from gateway.openai import CommonFields
from vdiff_grpc import v1
from vdiff_grpc.cli.flags import add_sampling_flags
from vdiff_grpc.client import (
    STRATEGIES,
    build_spec,
    confidence_threshold,
    fixed_schedule,
    hole,
    regex,
)
from vdiff_grpc.client.requests import Cache, build_count, build_stream_options
from vdiff_grpc.engine.caches.kinds import CacheKind


def test_only_what_is_said_is_sent() -> None:
    assert build_spec(text="") == v1.GenerationSpec(
        text="", sampling=v1.SamplingParams(), diffusion=v1.DiffusionParams()
    )
    assert build_stream_options() == v1.StreamOptions()


def test_a_hole_says_its_length_or_its_range() -> None:
    assert hole(3) == v1.Hole(length=3)
    assert hole(min_length=1, max_length=4) == v1.Hole(min_length=1, max_length=4)
    assert hole(2, constraint=regex("a")).constraint == v1.Constraint(regex="a")
    assert not hole(3).HasField("max_length")


def test_an_explicit_zero_is_sent() -> None:
    spec = build_spec(text="a", temperature=0.0, top_k=0, seed=0, cfg_scale=0.0, ignore_eos=False)
    assert spec.sampling == v1.SamplingParams(temperature=0, top_k=0, seed=0, ignore_eos=False)
    assert spec.diffusion == v1.DiffusionParams(cfg_scale=0)
    assert not spec.sampling.HasField("max_new_tokens")


def test_every_parameter_reaches_its_field() -> None:
    spec = build_spec(
        text="a",
        suffix="b",
        request_id="r",
        model="m",
        max_new_tokens=1,
        temperature=0.5,
        top_p=0.25,
        top_k=2,
        seed=2**64 - 1,
        n=3,
        stop="x",
        stop_token_ids=[4, 5],
        ignore_eos=True,
        block_length=6,
        steps=7,
        cfg_scale=1.5,
        strategy=confidence_threshold(0.75),
        top_logprobs=8,
        cache="dual",
        cache_refresh_steps=9,
        suffix_window=5,
        hole_lengths="native",
        priority=-4,
        latency_budget_s=1.5,
        best_of=3,
        partial_on_deadline=True,
        return_trajectory=True,
        constraint=regex("[0-9]+"),
    )
    assert spec == v1.GenerationSpec(
        text="a",
        suffix="b",
        request_id="r",
        model="m",
        sampling=v1.SamplingParams(
            max_new_tokens=1,
            temperature=0.5,
            top_p=0.25,
            top_k=2,
            seed=2**64 - 1,
            n=3,
            stop=v1.StopCriteria(strings=["x"], token_ids=[4, 5]),
            ignore_eos=True,
            top_logprobs=8,
            best_of=3,
        ),
        diffusion=v1.DiffusionParams(
            block_length=6,
            steps=7,
            cfg_scale=1.5,
            confidence_threshold=v1.ConfidenceThreshold(threshold=0.75),
            cache=v1.CACHE_POLICY_DUAL,
            cache_refresh_steps=9,
            suffix_window=5,
            hole_lengths=v1.HOLE_LENGTHS_NATIVE,
        ),
        priority=-4,
        latency_budget=Duration(seconds=1, nanos=500_000_000),
        partial_on_deadline=True,
        return_trajectory=True,
        constraint=v1.Constraint(regex="[0-9]+"),
    )
    # The input and the strategy stand for the other cases of their oneofs.
    others = {"token_ids", "chat", "infill", *STRATEGIES} - {"confidence_threshold"}
    unsaid = {
        field.name
        for message in (spec, spec.sampling, spec.diffusion)
        for field in message.DESCRIPTOR.fields
        if field.name not in {said.name for said, _ in message.ListFields()}
    }
    assert unsaid == others


def test_strategies_are_the_contract_s_messages() -> None:
    assert fixed_schedule("random").remasking == v1.REMASKING_ORDER_RANDOM
    assert fixed_schedule() == v1.FixedSchedule()
    assert confidence_threshold() == v1.ConfidenceThreshold()
    spec = build_spec(text="", strategy=fixed_schedule())
    assert spec.diffusion.WhichOneof("strategy") == "fixed_schedule"


def test_inputs_of_every_kind() -> None:
    assert list(build_spec(token_ids=[1, 2]).token_ids.ids) == [1, 2]
    chat = build_spec(messages=[{"role": "system", "content": "s"}, v1.ChatMessage(content="u")])
    assert [m.role for m in chat.chat.messages] == [v1.ROLE_SYSTEM, v1.ROLE_UNSPECIFIED]
    segments = build_spec(infill=["a", hole(3), [7, 8]]).infill.segments
    assert [s.WhichOneof("kind") for s in segments] == ["text", "hole", "token_ids"]
    assert segments[1].hole.length == 3
    assert build_count(infill=["a", hole(3)]).infill.segments[0].text == "a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "got nothing"),
        ({"text": "a", "token_ids": [1]}, "got text, token_ids"),
        ({"messages": [{"role": "robot", "content": ""}]}, r"role \(robot\) must be one of system"),
    ],
)
def test_a_wrong_input_is_refused_by_name(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_spec(**arguments)  # type: ignore[arg-type]


def test_a_wrong_choice_is_refused_by_name_and_value() -> None:
    with pytest.raises(ValueError, match=r"granularity \(all\) must be one of committed"):
        build_stream_options("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"remasking \(best\)"):
        fixed_schedule("best")  # type: ignore[arg-type]


def test_the_names_of_caches_are_the_contract_s_everywhere() -> None:
    names = [
        name.removeprefix("CACHE_POLICY_").lower()
        for name, number in v1.CachePolicy.items()
        if number
    ]
    assert list(get_args(Cache)) == names
    assert list(CACHES) == names
    assert [kind.value for kind in CacheKind] == names
    flags = argparse.ArgumentParser()
    add_sampling_flags(flags)
    (flag,) = (action for action in flags._actions if action.dest == "cache")
    assert list(flag.choices or ()) == names
    (field,) = (f for f in msgspec.structs.fields(CommonFields) if f.name == "cache")
    assert all(f"'{name}'" in str(field.type) for name in names)
