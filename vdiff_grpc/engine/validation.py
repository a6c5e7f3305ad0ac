"""The only gate: nothing unvalidated reaches the engine. Knows limits, not threads or RPCs.

Field paths are those of GenerationSpec, so that a caller is told what it wrote wrong. All
violations of a request are reported together.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, TypeVar

from vdiff_grpc.engine.answer_checks import check_answers, check_trajectory
from vdiff_grpc.engine.cache_checks import cache_tokens, check_room, check_window, resolve_cache
from vdiff_grpc.engine.caches.kinds import CacheKind, page_tokens
from vdiff_grpc.engine.constraint_checks import (
    check_kind,
    compiler_for,
    resolve_constraints,
    wanted,
)
from vdiff_grpc.engine.constraints.automaton import HoleConstraint
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.growth_checks import most_steps, resolve_hole_lengths
from vdiff_grpc.engine.layout_checks import (
    check_beginning,
    hole_ranges,
    prompt_field,
    surplus,
)
from vdiff_grpc.engine.lengths import settled
from vdiff_grpc.engine.prompt_types import InfillPrompt, LengthChoice, Prompt, TextPrompt
from vdiff_grpc.engine.prompts import Violations, lay_out
from vdiff_grpc.engine.stop_checks import check_stop_ids, check_stops
from vdiff_grpc.engine.strategies import AdaptiveParallel, FixedSchedule, Strategy
from vdiff_grpc.engine.strategy_checks import (
    check_memory,
    check_own,
    check_step,
    resolve_budget,
    resolve_steps,
    resolve_strategy,
)
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.tool_checks import check_chat
from vdiff_grpc.engine.types import (
    MAX_TOP_LOGPROBS,
    AttentionPattern,
    EngineConfig,
    EngineLimits,
    ModelInfo,
    Request,
    RequestParams,
    ResolvedRequest,
    SamplingParams,
    Span,
    SpanKind,
)
from vdiff_grpc.errors import CheckpointError

_T = TypeVar("_T")

MAX_TEMPERATURE = 2.0
MAX_CFG_SCALE = 16.0
MAX_SEED = 2**64 - 1
MAX_PRIORITY = 100  # and as far below 0


def limits_for(config: EngineConfig, info: ModelInfo) -> EngineLimits:
    """What requests are held to: the configuration, bounded by the model. Needs no weights."""
    canvas = info.max_positions
    if info.attention in (AttentionPattern.FULL, AttentionPattern.CANVAS):
        canvas = min(canvas, config.max_step_tokens)  # all of it is computed in every step
    if config.max_canvas_tokens:
        canvas = min(canvas, config.max_canvas_tokens)
    kept = cache_tokens(config, info, canvas)
    if info.attention in (AttentionPattern.CAUSAL, AttentionPattern.BLOCK_CAUSAL):
        canvas = min(canvas, kept)
    least = 2
    if info.block_length is not None:
        # a canvas of a block-causal model is rounded up to whole blocks
        aligned = info.attention is AttentionPattern.BLOCK_CAUSAL
        least = max(2, info.block_length) if aligned else 1 + info.block_length
    if canvas < least:
        bound = "max_canvas_tokens" if not config.cache_tokens or canvas < kept else "cache_tokens"
        raise CheckpointError(
            f"{bound} ({canvas}) leaves no room for a prompt and an answer; {least} at least"
        )
    if info.attention is AttentionPattern.BLOCK_CAUSAL:
        canvas -= canvas % (info.block_length or 1)
    block_length = _only_block_length(info)
    own = Violations()
    check_own(info, own)
    if own.found:
        raise CheckpointError(f"{info.path}: {own.found[0].description}, by the checkpoint's word")
    return EngineLimits(
        max_canvas_tokens=canvas,
        max_new_tokens=canvas,
        max_block_length=block_length or canvas,
        # more rows than there are places could never be admitted
        max_n=min(config.max_n, config.max_running_rows + config.max_waiting_rows),
        max_running_rows=config.max_running_rows,
        max_waiting_rows=config.max_waiting_rows,
        max_step_tokens=config.max_step_tokens,
        max_cache_tokens=kept,
        max_prompt_step_tokens=config.max_prompt_step_tokens,
        max_request_time_s=config.max_request_time_s,
        default_max_new_tokens=min(config.default_max_new_tokens, canvas),
        default_block_length=block_length or min(config.default_block_length, canvas),
    )


def defaults(info: ModelInfo, limits: EngineLimits) -> SamplingParams:
    """What a request gets that says nothing. Its seed, drawn per request, is 0 here."""
    strategy = info.default_strategy.resolved()
    return SamplingParams(
        max_new_tokens=limits.default_max_new_tokens,
        temperature=info.default_temperature,
        top_p=1.0,
        top_k=0,
        seed=0,
        n=1,
        stop_strings=(),
        stop_token_ids=(),
        ignore_eos=False,
        block_length=limits.default_block_length,
        steps=limits.default_max_new_tokens if strategy.HAS_STEPS else None,
        cfg_scale=0.0,
        strategy=strategy,
        top_logprobs=0,
        cache=info.caches[0],
        cache_refresh_steps=0,
    )


def resolve(
    request: Request,
    info: ModelInfo,
    limits: EngineLimits,
    tokenizer: Tokenizer | None,
    compiler: Compiler | None = None,
) -> ResolvedRequest:
    """Checks every field and fills in the defaults. May take milliseconds, with a new constraint
    seconds: not for an event loop.

    compiler: of constraints, which keeps what it has built; none: one for this request.
    Raises InvalidRequestError.
    """
    bad = Violations()
    asked, base = request.params, defaults(info, limits)
    if request.stride < 1:
        bad.add("options.stride", f"stride ({request.stride}) must be at least 1")
    priority = _or(request.priority, 0)
    if abs(priority) > MAX_PRIORITY:
        bad.add("priority", f"priority ({priority}) is not in [-{MAX_PRIORITY}, {MAX_PRIORITY}]")
    _check_sampling(asked, info, limits, bad)
    check_stop_ids(asked, info, tokenizer, bad)
    strategy = resolve_strategy(_wanted(asked, info), info, bad)
    if asked.stop_strings and tokenizer is None:
        bad.add("sampling.stop.strings", f"stop strings: the model {info.name} has no tokenizer")
    infill = isinstance(request.prompt, InfillPrompt)
    if infill and asked.max_new_tokens is not None:
        bad.add(
            "sampling.max_new_tokens",
            f"max_new_tokens ({asked.max_new_tokens}) cannot be set with infill: "
            "its holes have their lengths",
        )
    check_chat(request.prompt, info, tokenizer, bad)
    constraints = wanted(request, bad, tokenizer)
    hole_lengths = resolve_hole_lengths(request, strategy, info, bad)
    grows = hole_lengths is LengthChoice.NATIVE
    for field, _ in constraints.values():
        check_kind(field, request, strategy, info, tokenizer, bad)
    num_asked = base.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens
    new_tokens = min(max(num_asked, 1), limits.max_new_tokens)
    canvas, spans = lay_out(request.prompt, info, tokenizer, new_tokens, bad)
    bad.raise_if_any()

    num_new = sum(span.length for span in spans if span.kind is SpanKind.HOLE)
    given = len(canvas) - num_new
    room = limits.max_canvas_tokens - given
    if info.attention is AttentionPattern.CANVAS:
        room -= room % (info.block_length or 1)
    if num_new > room:
        if room < 1 and not infill:
            bad.add(
                prompt_field(request.prompt),
                f"the prompt ({given} tokens) leaves no room to generate within the model's "
                f"limit ({limits.max_canvas_tokens})",
            )
        elif infill or asked.max_new_tokens is not None:
            bad.add(
                "infill.segments" if infill else "sampling.max_new_tokens",
                f"{'the length of all holes' if infill else 'max_new_tokens'} ({num_new}) exceeds "
                f"the model's limit ({limits.max_canvas_tokens} - {given} prompt tokens)",
            )
        bad.raise_if_any()
        # the default gives way to a long prompt
        canvas, spans = lay_out(request.prompt, info, tokenizer, room, bad)
        num_new = room
    check_beginning(request.prompt, spans, strategy, info, bad)
    num_holes = sum(span.kind is SpanKind.HOLE for span in spans)
    if num_holes > 1 and (asked.stop_strings or asked.stop_token_ids):
        bad.add("sampling.stop", f"stop cannot be used with several holes ({num_holes})")

    more = surplus(info, given, num_new)
    if more:
        canvas = [*canvas, *[info.blank_id] * more]
        spans = [*spans, Span(SpanKind.SURPLUS, more)]

    n = _or(asked.n, base.n)
    check_answers(request, n, info, limits, bad)
    num_rows = _or(asked.best_of, n)
    cfg_scale = _or(asked.cfg_scale, base.cfg_scale)
    block_length = _only_block_length(info) or min(
        num_new if grows else _or(asked.block_length, base.block_length), num_new
    )
    computed = len(canvas)
    pages = info.caches == (CacheKind.SETTLED,) and info.attention is not AttentionPattern.CANVAS
    if pages and not isinstance(strategy, AdaptiveParallel):  # its second model reads all at once
        # page by page, and what is left of the prompt with the first block
        computed = min(computed, page_tokens(info.block_length) + block_length)
    check_step(strategy, computed, block_length, cfg_scale, limits, bad)
    check_memory(strategy, block_length, info, bad)
    cache, refresh = resolve_cache(asked, strategy, info, bad)
    check_window(asked.suffix_window, strategy, info, bad)
    check_room(cache, len(canvas), cfg_scale, info, limits, bad)
    if isinstance(strategy, AdaptiveParallel) and len(canvas) > info.auxiliary_positions > 0:
        bad.add(
            f"diffusion.{strategy.NAME}",
            f"strategy {strategy.NAME}: the canvas ({len(canvas)} tokens) exceeds the auxiliary "
            f"model's limit ({info.auxiliary_positions})",
        )
    # counted from the end: a block-causal model's first block may be given in part
    num_blocks = -(-(num_new + more) // block_length)
    steps = resolve_steps(asked.steps, strategy, num_new, num_blocks, limits, bad)
    budget_ns = resolve_budget(request, strategy, limits, info, bad)
    if grows:
        steps = budget_ns = None
    bad.raise_if_any()
    times = most_steps(num_new) if grows else 1
    check_trajectory(request, strategy, num_rows, num_new + more, block_length, steps, bad, times)
    bad.raise_if_any()
    ignore_eos = _or(asked.ignore_eos, base.ignore_eos)
    ranges = hole_ranges(request.prompt)
    held: tuple[HoleConstraint, ...] = ()
    if constraints:
        compiler = compiler or compiler_for(info, tokenizer)
        held = resolve_constraints(constraints, spans, ranges, ignore_eos, compiler, bad)
        bad.raise_if_any()

    seed = secrets.randbits(53) if asked.seed is None else asked.seed
    arrival = time.monotonic_ns()
    resolved = ResolvedRequest(
        request_id=request.request_id,
        canvas=tuple(canvas),
        spans=tuple(spans),
        params=SamplingParams(
            max_new_tokens=num_new,
            temperature=_or(asked.temperature, base.temperature),
            top_p=_or(asked.top_p, base.top_p),
            top_k=_or(asked.top_k, base.top_k),
            seed=seed,
            n=n,
            stop_strings=asked.stop_strings,
            stop_token_ids=asked.stop_token_ids,
            ignore_eos=ignore_eos,
            block_length=block_length,
            steps=steps,
            cfg_scale=cfg_scale,
            strategy=strategy,
            top_logprobs=_or(asked.top_logprobs, base.top_logprobs),
            best_of=asked.best_of,
            cache=cache,
            cache_refresh_steps=refresh,
            suffix_window=asked.suffix_window,
            hole_lengths=hole_lengths,
        ),
        seeds=tuple(output_seed(seed, index) for index in range(num_rows)),
        is_template=infill
        or (isinstance(request.prompt, TextPrompt) and request.prompt.suffix is not None),
        granularity=request.granularity,
        stride=request.stride,
        arrival_ns=arrival,
        deadline_ns=arrival + int(limits.max_request_time_s * 1e9),
        partial_on_deadline=request.partial_on_deadline,
        priority=priority,
        due_ns=None if budget_ns is None else arrival + budget_ns,
        return_trajectory=request.return_trajectory,
        hole_ranges=() if grows else ranges,
        search_tokens=0
        if grows or not ranges
        else min(limits.max_prompt_step_tokens, limits.max_step_tokens),
        growing=ranges if grows else (),
        constraints=held,
    )
    return settled(resolved)


def encode_prompt(
    prompt: Prompt, info: ModelInfo, tokenizer: Tokenizer | None
) -> tuple[list[int], list[Span]]:
    """The prompt's token ids and spans, nothing to generate added. Raises InvalidRequestError."""
    bad = Violations()
    check_chat(prompt, info, tokenizer, bad)
    canvas, spans = lay_out(prompt, info, tokenizer, 0, bad)
    bad.raise_if_any()
    return canvas, spans


def output_seed(seed: int, index: int) -> int:
    """The seed of output `index`: the request's own for the first, 53-bit ones after it.

    53 bits survive JSON clients that keep numbers as doubles.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 11


def _wanted(asked: RequestParams, info: ModelInfo) -> Strategy | None:
    """The strategy that is asked for. Steps without one ask for a schedule."""
    scheduled = info.default_strategy.HAS_STEPS or FixedSchedule.NAME not in info.strategies
    if asked.strategy is None and asked.steps is not None and not scheduled:
        return FixedSchedule()
    return asked.strategy


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _check_sampling(
    asked: RequestParams, info: ModelInfo, limits: EngineLimits, bad: Violations
) -> None:
    """Every scalar against its range."""

    def within(field: str, low: float, high: float, *, open_low: bool = False) -> None:
        value: Any = getattr(asked, field.rpartition(".")[2])
        if value is None:
            return
        # written so that NaN fails too
        if not ((low < value if open_low else low <= value) and value <= high):
            name = field.rpartition(".")[2]
            bracket = "(" if open_low else "["
            bad.add(field, f"{name} ({value:g}) is not in {bracket}{low:g}, {high:g}]")

    def whole(field: str, low: int, high: int, limit: str) -> None:
        name = field.rpartition(".")[2]
        value: int | None = getattr(asked, name)
        if value is None:
            return
        if value < low:
            bad.add(field, f"{name} ({value}) must be at least {low}")
        elif value > high:
            bad.add(field, f"{name} ({value}) exceeds {limit} ({high})")

    whole("sampling.max_new_tokens", 1, limits.max_new_tokens, "the model's limit")
    within("sampling.temperature", 0.0, MAX_TEMPERATURE)
    within("sampling.top_p", 0.0, 1.0, open_low=True)
    whole("sampling.top_k", 0, info.vocab_size, "the vocabulary")
    whole("sampling.seed", 0, MAX_SEED, "the largest seed")
    whole("sampling.n", 1, limits.max_n, "the server's limit")
    whole(
        "sampling.top_logprobs",
        0,
        min(MAX_TOP_LOGPROBS, info.vocab_size),
        "the limit" if info.vocab_size >= MAX_TOP_LOGPROBS else "the vocabulary",
    )
    if (only := _only_block_length(info)) is None:
        whole("diffusion.block_length", 1, limits.max_block_length, "the model's limit")
    elif asked.block_length not in (None, only):
        bad.add(
            "diffusion.block_length",
            f"block_length ({asked.block_length}) must be that of the model {info.name} ({only})",
        )
    if asked.steps is not None and asked.steps < 1:
        bad.add("diffusion.steps", f"steps ({asked.steps}) must be at least 1")
    within("diffusion.cfg_scale", 0.0, MAX_CFG_SCALE)
    causal = info.attention is AttentionPattern.CAUSAL
    if (asked.cfg_scale or 0.0) > 0 and (causal or info.mask_token_id is None):
        bad.add(
            "diffusion.cfg_scale",
            f"cfg_scale ({asked.cfg_scale:g}) cannot be set: the model {info.name} "
            f"{'is causal' if causal else 'has no mask token'}",
        )
    check_stops(asked, info, bad)


def _only_block_length(info: ModelInfo) -> int | None:
    """The one block length that the model's attention leaves; None when any will do."""
    return 1 if info.attention is AttentionPattern.CAUSAL else info.block_length
