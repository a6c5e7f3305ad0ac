"""The gate: every field against its limit, by name and value."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import pytest

from tests.conftest import TINY
from vdiff_grpc import v1
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import (
    ChatMessage,
    ChatPrompt,
    Hole,
    InfillPrompt,
    Prompt,
    TextPrompt,
    TokensPrompt,
)
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import (
    STRATEGIES,
    AdaptiveParallel,
    ConfidenceThreshold,
    DreamOrder,
    DreamSchedule,
    EntropyBound,
    FixedSchedule,
    FreeDave,
    Klass,
    LeftToRight,
    LocalLeap,
    Range,
    Remdm,
    RemdmMode,
    Strategy,
    UniformNoise,
    Wino,
)
from vdiff_grpc.engine.strategy_checks import resolve_strategy, without_effect
from vdiff_grpc.engine.types import (
    AttentionPattern,
    EngineConfig,
    ModelInfo,
    Request,
    RequestParams,
    ResolvedRequest,
    Span,
    SpanKind,
)
from vdiff_grpc.engine.validation import defaults, limits_for, output_seed, resolve
from vdiff_grpc.errors import CheckpointError, InvalidRequestError

# A model that knows every strategy and has a second one beside it.
INFO = dataclasses.replace(
    describe(str(TINY)), strategies=tuple(STRATEGIES), auxiliary="a small one"
)
LIMITS = limits_for(EngineConfig(str(TINY), max_step_tokens=150), INFO)
PROMPT = TokensPrompt((1, 2, 3))


CAUSAL = dataclasses.replace(
    INFO,
    attention=AttentionPattern.CAUSAL,
    mask_token_id=None,
    supports_infill=False,
    strategies=("left_to_right",),
    default_strategy=LeftToRight(),
)
CANVASES_OF_4 = dataclasses.replace(
    CAUSAL,
    attention=AttentionPattern.CANVAS,
    block_length=4,
    strategies=("uniform_noise",),
    default_strategy=UniformNoise(),
)
BLOCKS_OF_4 = dataclasses.replace(
    INFO, attention=AttentionPattern.BLOCK_CAUSAL, block_length=4, supports_infill=False
)


def ask(prompt: Prompt = PROMPT, info: ModelInfo = INFO, **params: Any) -> ResolvedRequest:
    limits = LIMITS if info is INFO else limits_for(EngineConfig("", max_step_tokens=150), info)
    return resolve(Request(prompt, RequestParams(**params)), info, limits, None)


def refused(info: ModelInfo = INFO, **params: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        ask(info=info, **params)
    return {v.field: v.description for v in caught.value.violations}


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
    ({"strategy": FixedSchedule("best")}, "diffusion.fixed_schedule.remasking", "(best) is none of low_confidence, random"),
    ({"strategy": LocalLeap(0.8, 0.9)}, "diffusion.local_leap.relaxed_threshold", "(0.9) must be at most threshold (0.8)"),
    ({"strategy": Remdm(RemdmMode.CONF, eta=0.1)}, "diffusion.remdm.eta", "(0.1) cannot be set with mode conf"),
    ({"strategy": Remdm(t_on=0.5)}, "diffusion.remdm.t_on", "(0.5) cannot be set with mode cap"),
    ({"strategy": Remdm(RemdmMode.RESCALE, alpha_on=0.5)}, "diffusion.remdm.alpha_on", "mode rescale"),
    ({"strategy": Remdm(RemdmMode.LOOP, t_on=0.04)}, "diffusion.remdm.t_on", "t_off (0.05) must be below t_on (0.04)"),
    ({"strategy": Remdm(RemdmMode.LOOP, t_off=0.55)}, "diffusion.remdm.t_off", "(0.55)"),
    ({"strategy": UniformNoise(t_min=0.8)}, "diffusion.uniform_noise.t_min", "t_min (0.8) must be below t_max (0.8)"),
    ({"strategy": UniformNoise(t_max=0.3)}, "diffusion.uniform_noise.t_max", "t_max (0.3)"),
    ({"strategy": DreamSchedule(DreamOrder.ORIGIN, 0.0)}, "diffusion.dream_schedule.order_temperature", "(0) cannot be set with order origin"),
    ({"strategy": FreeDave(), "max_new_tokens": 30}, "diffusion.freedave", "165 tokens in a step of 33"),
    ({"strategy": Wino(), "max_new_tokens": 80, "block_length": 80}, "diffusion.wino", "163 tokens in a step of 83"),
    ({"strategy": FreeDave(1), "cfg_scale": 1.0, "max_new_tokens": 50}, "diffusion.cfg_scale", "twice 106 tokens exceed"),
    ({"strategy": Wino(), "steps": 8}, "diffusion.steps", "(8) cannot be set with wino"),
    ({"strategy": Remdm(), "steps": 1025}, "diffusion.steps", "(1025) exceeds the limit (1024)"),
    ({"strategy": AdaptiveParallel(), "prompt": InfillPrompt((Hole(2), (1,)))}, "infill.segments", "adaptive_parallel needs at least 1 token before the first hole"),
    ({"top_logprobs": -1}, "sampling.top_logprobs", "(-1) must be at least 0"),
    ({"top_logprobs": 21}, "sampling.top_logprobs", "(21) exceeds the limit (20)"),
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
    ({"info": CANVASES_OF_4, "best_of": 2}, "sampling.best_of", "fills noise, not masks"),
    ({"prompt": InfillPrompt((Hole(0),))}, "infill.segments[0].hole.length", "(0)"),
    ({"prompt": InfillPrompt((Hole(3, 1, 4),))}, "infill.segments[0].hole.length", "(3) cannot be set with min_length or max_length"),
    ({"prompt": InfillPrompt((Hole(0, 2),))}, "infill.segments[0].hole.min_length", "(2) needs max_length"),
    ({"prompt": InfillPrompt((Hole(0, 0, 4),))}, "infill.segments[0].hole.min_length", "(0) is not in [1, 4]"),
    ({"prompt": InfillPrompt((Hole(0, 5, 4),))}, "infill.segments[0].hole.min_length", "(5) is not in [1, 4]"),
    ({"prompt": InfillPrompt((Hole(0, 1, 0),))}, "infill.segments[0].hole.max_length", "(0) is not in"),
    ({"prompt": InfillPrompt((Hole(0, 1, 90), Hole(0, 1, 90)))}, "infill.segments", "(180) exceeds"),
    ({"prompt": InfillPrompt((Hole(0, 1, 2),) * 17)}, "infill.segments", "17 holes whose length is to be chosen; the limit is 16"),
    ({"prompt": InfillPrompt((Hole(4),)), "max_new_tokens": 4}, "sampling.max_new_tokens", "(4) cannot be set with infill"),
    ({"prompt": InfillPrompt((Hole(100), Hole(100)))}, "infill.segments", "(200) exceeds"),
    ({"prompt": InfillPrompt((Hole(2), (1,), Hole(2))), "stop_token_ids": (5,)}, "sampling.stop", "several holes (2)"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "field", "words"), BAD, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_refused_by_field_value_and_limit(
    params: dict[str, Any], field: str, words: str
) -> None:
    found = refused(**params)
    assert field in found
    assert words in found[field]


def test_a_stride_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"stride \(0\) must be at least 1"):
        resolve(Request(PROMPT, stride=0), INFO, LIMITS, None)


def test_a_canvas_without_room_is_the_operators_error() -> None:
    with pytest.raises(CheckpointError, match=r"max_canvas_tokens \(1\)"):
        limits_for(EngineConfig(str(TINY), max_canvas_tokens=1), INFO)


def test_all_violations_are_told_at_once() -> None:
    found = refused(temperature=3.0, top_p=2.0, n=0, strategy=Klass(2.0, history=0))
    assert len(found) == 5


def test_explicit_zeros_stay_zeros_and_silence_gets_the_defaults() -> None:
    params = ask(temperature=0.0, top_k=0, seed=0).params
    assert (params.temperature, params.top_k, params.seed) == (0.0, 0, 0)
    assert params.max_new_tokens == 125, "the default of 128 gives way to the prompt"
    assert (params.block_length, params.steps, params.n) == (32, None, 1)
    assert params.strategy == INFO.default_strategy == EntropyBound(0.05)
    assert params.top_logprobs == 0
    assert ask().params.seed != ask().params.seed


def test_steps_without_a_strategy_ask_for_a_schedule() -> None:
    assert ask(steps=5, max_new_tokens=8).params.strategy == FixedSchedule().resolved()
    assert "steps" in refused(steps=5, strategy=EntropyBound())["diffusion.steps"]


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


PARAMETERS = [
    (kind, name, given) for kind in STRATEGIES.values() for name, given in kind.ranges().items()
]


def just_outside(given: Range) -> list[Any]:
    """The nearest values that the range does not have, and some that are no number at all."""
    if isinstance(given.default, enum.Enum):
        return ["nothing", 1]
    if isinstance(given.default, int):
        return [int(given.low) - 1, int(given.high) + 1]
    low = given.low if given.open_low else math.nextafter(given.low, -1)
    return [low, math.nextafter(given.high, math.inf), math.nan, math.inf, -math.inf]


def beside(kind: type[Strategy], name: str) -> dict[str, Any]:
    """What must be set for the parameter to have a meaning."""
    if kind is Remdm and name in ("t_on", "t_off", "alpha_on"):
        return {"mode": RemdmMode.LOOP}
    return {}


@pytest.mark.parametrize(
    ("kind", "name", "given"), PARAMETERS, ids=[f"{k.NAME}.{name}" for k, name, _ in PARAMETERS]
)
def test_every_parameter_of_every_strategy_is_held_to_its_range(
    kind: type[Strategy], name: str, given: Range
) -> None:
    for value in just_outside(given):
        field = f"diffusion.{kind.NAME}.{name}"
        found = refused(strategy=kind(**beside(kind, name), **{name: value}))
        assert field in found
        assert found[field].startswith(f"{name} (")
    if not isinstance(given.default, enum.Enum):
        low = math.nextafter(given.low, 1) if given.open_low else given.low
        for value in (type(given.default)(low), given.high):
            bad = Violations()
            resolve_strategy(kind(**beside(kind, name), **{name: value}), INFO, bad)
            assert "is not in" not in str(bad.found)


@pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_is_resolved_to_the_last_parameter(kind: type[Strategy]) -> None:
    params = ask(strategy=kind(), max_new_tokens=8).params
    own = INFO.default_strategy
    assert params.strategy == (own if type(own) is kind else kind()).resolved()
    assert None not in dataclasses.astuple(params.strategy)
    assert params.steps == (8 if kind.HAS_STEPS else None)
    assert set(without_effect(params.strategy)) <= set(kind.ranges())


def test_the_contract_and_the_engine_have_the_same_strategies_and_parameters() -> None:
    cases = v1.DiffusionParams.DESCRIPTOR.oneofs_by_name["strategy"].fields
    contract = {case.name: {f.name: f for f in case.message_type.fields} for case in cases}
    assert set(contract) == set(STRATEGIES)
    for name, fields in contract.items():
        ranges = STRATEGIES[name].ranges()
        assert set(fields) == set(ranges), name
        for parameter, field in fields.items():
            default = ranges[parameter].default
            if field.enum_type is None:
                wanted = field.TYPE_DOUBLE if isinstance(default, float) else field.TYPE_UINT32
                assert (field.type, field.has_presence) == (wanted, True), f"{name}.{parameter}"
                continue
            prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
            words = {v.name.removeprefix(prefix) for v in field.enum_type.values if v.number}
            assert words == set(type(default).__members__), f"{name}.{parameter}"


def test_a_relaxed_threshold_that_was_left_out_gives_way() -> None:
    assert ask(strategy=LocalLeap(0.5)).params.strategy == LocalLeap(0.5, 0.5, 4)
    assert ask(strategy=LocalLeap(0.8)).params.strategy == LocalLeap(0.8, 0.75, 4)


def test_what_is_left_out_of_the_models_own_strategy_is_the_models_word() -> None:
    info = dataclasses.replace(INFO, default_strategy=Klass(history=5))
    assert ask(info=info, strategy=Klass(0.5)).params.strategy == Klass(0.5, 0.01, 5)
    assert ask(info=info, strategy=Wino(), max_new_tokens=8).params.strategy == Wino(0.6, 0.9)


def test_a_strategy_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    info = dataclasses.replace(INFO, strategies=("fixed_schedule", "klass"))
    found = refused(info, strategy=Wino())
    assert "strategy wino is not among this model's: fixed_schedule, klass" in str(found)
    assert list(found) == ["diffusion.wino"]


def test_without_an_auxiliary_model_adaptive_parallel_is_refused_with_the_flag() -> None:
    found = refused(dataclasses.replace(INFO, auxiliary=""), strategy=AdaptiveParallel())
    assert "no auxiliary model (--aux-model)" in found["diffusion.adaptive_parallel"]


def test_silence_gets_the_models_own_strategy() -> None:
    info = dataclasses.replace(INFO, default_strategy=Klass(0.5))
    assert ask(info=info).params.strategy == Klass(0.5, 0.01, 2)
    assert defaults(info, LIMITS).strategy == Klass(0.5, 0.01, 2)
    assert defaults(dataclasses.replace(INFO, default_strategy=Wino()), LIMITS).steps is None


def test_what_masks_again_may_have_more_steps_than_positions() -> None:
    assert ask(strategy=Remdm(), max_new_tokens=8, steps=1024).params.steps == 1024
    found = refused(strategy=Remdm(), max_new_tokens=8, block_length=4, steps=1)
    assert "(1) is fewer than the blocks (2)" in found["diffusion.steps"]


def test_a_block_causal_canvas_is_rounded_up_to_whole_blocks() -> None:
    request = ask(info=BLOCKS_OF_4, max_new_tokens=6)
    assert request.spans == (
        Span(SpanKind.PROMPT, 3),
        Span(SpanKind.HOLE, 6),
        Span(SpanKind.SURPLUS, 3),
    )
    assert len(request.canvas) == 12
    assert request.canvas[3:] == (INFO.blank_id,) * 9
    assert request.num_prompt_tokens == 3
    assert (request.params.max_new_tokens, request.params.block_length) == (6, 4)
    assert ask(info=BLOCKS_OF_4, max_new_tokens=5).spans[-1] == Span(SpanKind.HOLE, 5)


def test_a_block_causal_canvas_fits_after_the_rounding() -> None:
    info = dataclasses.replace(BLOCKS_OF_4, max_positions=30)
    limits = limits_for(EngineConfig(""), info)
    assert (limits.max_canvas_tokens, limits.max_block_length) == (28, 4)
    assert len(ask(info=info).canvas) == 28, "the default gives way"
    found = refused(info, max_new_tokens=26)
    assert "(26) exceeds the model's limit (28 - 3 prompt tokens)" in str(found)
    with pytest.raises(CheckpointError, match=r"max_canvas_tokens \(3\).*4 at least"):
        limits_for(EngineConfig("", max_canvas_tokens=3), info)


def test_a_block_causal_model_takes_its_own_block_length_only() -> None:
    assert ask(info=BLOCKS_OF_4, block_length=4, max_new_tokens=1).params.block_length == 4
    found = refused(BLOCKS_OF_4, block_length=8)
    assert "block_length (8) must be that of the model tiny-llada (4)" in str(found)
    # 5 open positions after 3 given ones are one in the first block and four in the next
    assert ask(info=BLOCKS_OF_4, max_new_tokens=5, steps=2).params.steps == 2
    assert "(1) is fewer than the blocks (2)" in str(
        refused(BLOCKS_OF_4, max_new_tokens=5, steps=1)
    )


def test_canvases_begin_where_the_prompt_ends() -> None:
    info = dataclasses.replace(CANVASES_OF_4, max_positions=30)
    assert limits_for(EngineConfig(""), info).max_canvas_tokens == 30
    assert ask(info=info, max_new_tokens=6).spans[1:] == (
        Span(SpanKind.HOLE, 6),
        Span(SpanKind.SURPLUS, 2),
    )
    assert ask(info=info, max_new_tokens=8).spans[-1] == Span(SpanKind.HOLE, 8)
    assert len(ask(info=info).canvas) == 27, "the default gives way to 6 whole canvases"
    assert "sampling.max_new_tokens" in refused(info, max_new_tokens=25)
    assert "token_ids.ids" in refused(info, prompt=TokensPrompt((1,) * 27))
    assert "infill.segments" in refused(info, prompt=InfillPrompt((Hole(4),)))
    with pytest.raises(CheckpointError, match=r"max_canvas_tokens \(4\).*5 at least"):
        limits_for(EngineConfig("", max_canvas_tokens=4), info)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"block_length": 8}, "diffusion.block_length"),
        ({"steps": 8}, "diffusion.steps"),
        ({"cfg_scale": 1.0}, "diffusion.cfg_scale"),
        ({"strategy": FixedSchedule()}, "diffusion.fixed_schedule"),
        ({"prompt": InfillPrompt(((1,), Hole(2), (3,)))}, "infill"),
        (
            {"prompt": InfillPrompt(((1,), Hole(max_length=2)))},
            "infill.segments[1].hole.max_length",
        ),
        ({"prompt": InfillPrompt((Hole(2),))}, "infill.segments"),
    ],
    ids=str,
)
def test_a_causal_model_refuses_what_only_diffusion_can(params: dict[str, Any], field: str) -> None:
    assert list(refused(CAUSAL, **params)) == [field]


def test_a_causal_model_goes_position_by_position() -> None:
    params = ask(info=CAUSAL, block_length=1, cfg_scale=0.0).params
    assert (params.strategy, params.block_length, params.steps) == (LeftToRight(), 1, None)


def test_guidance_needs_a_mask_token() -> None:
    info = dataclasses.replace(INFO, mask_token_id=None)
    assert "has no mask token" in refused(info, cfg_scale=0.5)["diffusion.cfg_scale"]
    assert ask(info=info).canvas[-1] == INFO.vocab_size, "what stands in holes is no token"


def test_a_small_vocabulary_bounds_the_most_likely_tokens() -> None:
    info = dataclasses.replace(INFO, vocab_size=7, mask_token_id=6)
    assert ask(info=info, top_logprobs=7).params.top_logprobs == 7
    assert "(8) exceeds the vocabulary (7)" in str(refused(info, top_logprobs=8))


def test_klass_remembers_no_more_than_it_may() -> None:
    wide = dataclasses.replace(INFO, vocab_size=2**20)
    assert ask(info=wide, max_new_tokens=100, block_length=64, strategy=Klass())
    fields = refused(info=wide, max_new_tokens=100, block_length=65, strategy=Klass())
    assert "(65)" in fields["diffusion.block_length"]
    assert "(64)" in fields["diffusion.block_length"]


def test_a_canvas_is_no_longer_than_the_auxiliary_model_can_read() -> None:
    short = dataclasses.replace(INFO, auxiliary_positions=16)
    assert ask(info=short, max_new_tokens=13, strategy=AdaptiveParallel())
    fields = refused(info=short, max_new_tokens=14, strategy=AdaptiveParallel())
    assert "17" in fields["diffusion.adaptive_parallel"]


def test_a_template_far_too_long_is_refused_before_it_is_laid_out() -> None:
    holes = InfillPrompt((Hole(INFO.max_positions),) * 200)
    with pytest.raises(InvalidRequestError) as caught:
        ask(holes)
    assert [v.field for v in caught.value.violations] == ["infill.segments[2]"]


def test_a_checkpoints_own_strategy_is_held_to_the_ranges() -> None:
    broken = dataclasses.replace(
        CANVASES_OF_4, default_strategy=UniformNoise(max_denoising_steps=0)
    )
    with pytest.raises(CheckpointError, match=r"max_denoising_steps \(0\)"):
        limits_for(EngineConfig(""), broken)
