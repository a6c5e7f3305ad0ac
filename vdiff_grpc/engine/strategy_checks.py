"""Checks a strategy's parameters and fills in what was left out. Knows no canvas.

Ranges come from the strategy's own table; what parameters say about one another stands here.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import (
    AdaptiveParallel,
    DreamOrder,
    DreamSchedule,
    Klass,
    LocalLeap,
    Range,
    Remdm,
    RemdmMode,
    Strategy,
    UniformNoise,
)
from vdiff_grpc.engine.types import AttentionPattern, EngineLimits, ModelInfo, Request

# Steps of a strategy that masks again, times the model's limit of positions.
MAX_SPARE = 8

# Numbers of float32 that a rule may keep of a row's block: 256 MiB.
_MAX_REMEMBERED = 2**26

# The first parameter is less than the second; True: or as large.
_ORDERED = (
    (LocalLeap, "relaxed_threshold", "threshold", True),
    (Remdm, "t_off", "t_on", False),  # time falls from 1 to 0
    (UniformNoise, "t_min", "t_max", False),
)


def resolve_strategy(asked: Strategy | None, info: ModelInfo, bad: Violations) -> Strategy:
    """The strategy with every parameter filled in; the model's own when none is asked for.

    What is wrong is added to `bad`, and the strategy is then of no use.
    """
    own = info.default_strategy
    if asked is None:
        return own.resolved()
    path = f"diffusion.{asked.NAME}"
    found_before = len(bad.found)
    if isinstance(asked, AdaptiveParallel) and not info.auxiliary:
        bad.add(path, f"strategy {asked.NAME}: this server has no auxiliary model (--aux-model)")
    elif asked.NAME not in info.strategies:
        bad.add(
            path, f"strategy {asked.NAME} is not among this model's: {', '.join(info.strategies)}"
        )
    values = {name: getattr(asked, name) for name in asked.ranges()}
    said = {name: value for name, value in values.items() if value is not None}
    for name, value in said.items():
        if why := _outside(value, asked.ranges()[name]):
            bad.add(f"{path}.{name}", f"{name} ({_shown(value)}) {why}")
    # what is left out is the model's word, where it has one
    resolved = (dataclasses.replace(own, **said) if type(own) is type(asked) else asked).resolved()
    for name, why in without_effect(resolved).items():
        if name in said:
            bad.add(f"{path}.{name}", f"{name} ({_shown(said[name])}) cannot be set with {why}")
    if len(bad.found) > found_before:
        return resolved
    if isinstance(resolved, LocalLeap) and "relaxed_threshold" not in said:
        lower = min(resolved.relaxed_threshold, resolved.threshold)
        resolved = dataclasses.replace(resolved, relaxed_threshold=lower)  # the default gives way
    _check_order(resolved, said, bad)
    return resolved


def check_own(info: ModelInfo, bad: Violations) -> None:
    """The model's own strategy, whose parameters a checkpoint may have set."""
    own = info.default_strategy
    said = {name: value for name in own.ranges() if (value := getattr(own, name)) is not None}
    for name, value in said.items():
        if why := _outside(value, own.ranges()[name]):
            bad.add(name, f"{own.NAME}: {name} ({_shown(value)}) {why}")
    _check_order(own.resolved(), said, bad)


def without_effect(strategy: Strategy) -> dict[str, str]:
    """Parameters that mean nothing beside the strategy's others: name -> what they are beside."""
    resolved = strategy.resolved()
    if isinstance(resolved, DreamSchedule) and resolved.order is DreamOrder.ORIGIN:
        return {"order_temperature": "order origin, which draws every position alone"}
    if not isinstance(resolved, Remdm):
        return {}
    unused = {}
    if resolved.mode is not RemdmMode.LOOP:
        mode = f"mode {_shown(resolved.mode)}: only loop has it"
        unused = dict.fromkeys(("t_on", "t_off", "alpha_on"), mode)
    if resolved.mode is RemdmMode.CONF:
        unused["eta"] = "mode conf, which has none"
    return unused


def resolve_steps(
    asked: int | None,
    strategy: Strategy,
    num_new: int,
    num_blocks: int,
    limits: EngineLimits,
    bad: Violations,
) -> int | None:
    """Steps over all blocks; None for a strategy without a schedule, which refuses them.

    num_new: positions of the answer.
    """
    if not strategy.HAS_STEPS:
        if asked is not None:
            bad.add(
                "diffusion.steps",
                f"steps ({asked}) cannot be set with {strategy.NAME}: "
                "the rule itself decides how many it takes",
            )
        return None
    if asked is None:
        return num_new
    if asked < num_blocks:
        bad.add("diffusion.steps", f"steps ({asked}) is fewer than the blocks ({num_blocks})")
    elif strategy.SPARE_STEPS:
        limit = MAX_SPARE * limits.max_new_tokens
        if asked > limit:
            bad.add("diffusion.steps", f"steps ({asked}) exceeds the limit ({limit})")
    elif asked > num_new:
        bad.add("diffusion.steps", f"steps ({asked}) exceeds the generated positions ({num_new})")
    return asked


def resolve_budget(
    request: Request, strategy: Strategy, limits: EngineLimits, info: ModelInfo, bad: Violations
) -> int | None:
    """The latency budget in ns; None where there is none, or an optional one cannot be kept to."""
    asked = request.latency_budget_ns
    if asked is None:
        return None
    if not 0 < asked <= limits.max_request_time_s * 1e9:
        bad.add(
            "latency_budget",
            f"latency_budget ({asked / 1e9:g} s) is not in (0, {limits.max_request_time_s:g}]",
        )
    if strategy.HURRIES and info.attention is not AttentionPattern.CAUSAL:
        return asked
    if not request.budget_is_optional:
        who = f"strategy {strategy.NAME}" if not strategy.HURRIES else f"the model {info.name}"
        bad.add("latency_budget", f"latency_budget: {who} cannot be hurried")
    return None


def _outside(value: Any, given: Range) -> str:
    """Why the value is not allowed; empty when it is."""
    if isinstance(given.default, enum.Enum):
        kind = type(given.default)
        return "" if isinstance(value, kind) else f"is none of {', '.join(k.value for k in kind)}"
    above = given.low < value if given.open_low else given.low <= value
    if above and value <= given.high:  # NaN is neither
        return ""
    return f"is not in {'(' if given.open_low else '['}{given.low:g}, {given.high:g}]"


def _check_order(strategy: Strategy, said: dict[str, Any], bad: Violations) -> None:
    """Of two parameters that limit one another the one that was said is named."""
    for kind, less, more, may_equal in _ORDERED:
        if not isinstance(strategy, kind) or less in without_effect(strategy):
            continue
        low, high = getattr(strategy, less), getattr(strategy, more)
        if low < high or (may_equal and low == high):
            continue
        bad.add(
            f"diffusion.{strategy.NAME}.{less if less in said else more}",
            f"{less} ({low:g}) must be {'at most' if may_equal else 'below'} {more} ({high:g})",
        )


def _shown(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_memory(strategy: Strategy, block_length: int, info: ModelInfo, bad: Violations) -> None:
    """KLASS remembers a distribution for every position of up to two blocks, until they are left"""
    most = max(_MAX_REMEMBERED // info.vocab_size, 1)
    if isinstance(strategy, Klass) and block_length > most:
        bad.add(
            "diffusion.block_length",
            f"block_length ({block_length}) exceeds what {Klass.NAME} can remember with a "
            f"vocabulary of {info.vocab_size} ({most})",
        )


def check_step(
    strategy: Strategy,
    length: int,
    block_length: int,
    cfg_scale: float,
    limits: EngineLimits,
    bad: Violations,
) -> None:
    """One step of a canvas of `length` must fit in a forward pass."""
    tokens, limit = strategy.step_tokens(length, block_length), limits.max_step_tokens
    if tokens > limit:
        bad.add(
            f"diffusion.{strategy.NAME}",
            f"strategy {strategy.NAME} computes {tokens} tokens in a step of {length}, which "
            f"exceeds the server's limit per step ({limit})",
        )
    elif cfg_scale > 0 and 2 * tokens > limit:
        bad.add(
            "diffusion.cfg_scale",
            f"cfg_scale ({cfg_scale:g}) computes the canvas twice, and twice {tokens} tokens "
            f"exceed the server's limit per step ({limit})",
        )
