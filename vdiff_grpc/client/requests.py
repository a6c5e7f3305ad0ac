"""Builds the contract's requests from keyword arguments. Knows no channel.

What is left out (None) is left out of the request, so that the server's default holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

from vdiff_grpc import v1
from vdiff_grpc.client.constraints import checked
from vdiff_grpc.client.strategies import Strategy, strategy_name
from vdiff_grpc.client.tools import chat_input

T = TypeVar("T")
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Granularity: TypeAlias = Literal["committed", "steps", "snapshots"]
Message: TypeAlias = v1.ChatMessage | Mapping[str, Any]
Cache: TypeAlias = Literal["none", "settled", "prefix", "dual"]
HoleLengths: TypeAlias = Literal["confidence", "native"]
Segment: TypeAlias = str | Sequence[int] | v1.Hole
ModelInput: TypeAlias = str | v1.TokenIds | v1.ChatInput | v1.InfillTemplate

_ROLES: dict[str, v1.Role] = {
    "system": v1.ROLE_SYSTEM,
    "user": v1.ROLE_USER,
    "assistant": v1.ROLE_ASSISTANT,
    "tool": v1.ROLE_TOOL,
}
_CACHES: dict[str, Any] = {
    name.removeprefix("CACHE_POLICY_").lower(): number
    for name, number in v1.CachePolicy.items()
    if number
}
_HOLE_LENGTHS: dict[str, Any] = {
    "confidence": v1.HOLE_LENGTHS_CONFIDENCE,
    "native": v1.HOLE_LENGTHS_NATIVE,
}
_GRANULARITIES: dict[str, v1.Granularity] = {
    "committed": v1.GRANULARITY_COMMITTED,
    "steps": v1.GRANULARITY_STEPS,
    "snapshots": v1.GRANULARITY_SNAPSHOTS,
}


class InputFields(TypedDict, total=False):
    """The input when it is not `text`, the methods' own argument; exactly one of them."""

    token_ids: Iterable[int] | None
    messages: Iterable[Message] | None  # {"role": ..., "content": ...}
    tools: Iterable[v1.Tool] | None  # with messages: tool(name, schema), ...
    tool_choice: str | v1.ToolChoice | None  # none, auto, required, or a function's name
    parallel_tool_calls: bool | None
    infill: Iterable[Segment] | None  # text, token ids or hole(length), in order; template("...")
    model: str


class SpecFields(InputFields, total=False):
    """Keyword arguments of `generate` and `stream`; generation.proto says what each means."""

    suffix: str | None
    request_id: str
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    n: int | None
    stop: str | Iterable[str] | None
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool | None
    block_length: int | None
    steps: int | None
    cfg_scale: float | None
    strategy: Strategy | None  # fixed_schedule(...), wino(...), ...: see strategies.py
    top_logprobs: int | None
    best_of: int | None  # not in streams
    cache: Cache | None
    cache_refresh_steps: int | None
    suffix_window: int | None
    hole_lengths: HoleLengths | None
    partial_on_deadline: bool | None  # the canvas as it stands, in place of TimedOutError
    priority: int | None  # among those that wait; the smaller goes first
    return_trajectory: bool | None  # not in streams
    latency_budget_s: float | None  # in which the answer should be complete, hurried if need be
    constraint: v1.Constraint | None  # regex(...), choice(...), json_schema(...)


def hole(
    length: int | None = None,
    *,
    min_length: int | None = None,
    max_length: int | None = None,
    constraint: v1.Constraint | None = None,
) -> v1.Hole:
    """A hole of so many positions in an infill template, or of what the server finds to fit.

    constraint: regex(...), choice(...) or json_schema(...), which what fills it meets.
    """
    return v1.Hole(
        length=length,
        min_length=min_length,
        max_length=max_length,
        constraint=checked(constraint),
    )


def build_spec(
    *,
    text: str | None = None,
    token_ids: Iterable[int] | None = None,
    messages: Iterable[Message] | None = None,
    tools: Iterable[v1.Tool] | None = None,
    tool_choice: str | v1.ToolChoice | None = None,
    parallel_tool_calls: bool | None = None,
    infill: Iterable[Segment] | None = None,
    model: str = "",
    suffix: str | None = None,
    request_id: str = "",
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    n: int | None = None,
    stop: str | Iterable[str] | None = None,
    stop_token_ids: Iterable[int] | None = None,
    ignore_eos: bool | None = None,
    block_length: int | None = None,
    steps: int | None = None,
    cfg_scale: float | None = None,
    strategy: Strategy | None = None,
    top_logprobs: int | None = None,
    best_of: int | None = None,
    cache: Cache | None = None,
    cache_refresh_steps: int | None = None,
    suffix_window: int | None = None,
    hole_lengths: HoleLengths | None = None,
    partial_on_deadline: bool | None = None,
    priority: int | None = None,
    return_trajectory: bool | None = None,
    latency_budget_s: float | None = None,
    constraint: v1.Constraint | None = None,
) -> v1.GenerationSpec:
    """The spec of both RPCs. ValueError when the input is not exactly one."""
    given = build_input(
        text=text,
        token_ids=token_ids,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        infill=infill,
    )
    strings = [stop] if isinstance(stop, str) else list(stop or ())
    stop_ids = list(stop_token_ids or ())
    diffusion = v1.DiffusionParams(
        block_length=block_length,
        steps=steps,
        cfg_scale=cfg_scale,
        cache=None if cache is None else _choice("cache", cache, _CACHES),
        cache_refresh_steps=cache_refresh_steps,
        suffix_window=suffix_window,
        hole_lengths=None
        if hole_lengths is None
        else _choice("hole_lengths", hole_lengths, _HOLE_LENGTHS),
    )
    if strategy is not None:
        case = getattr(diffusion, strategy_name(strategy))
        case.CopyFrom(strategy)
        case.SetInParent()  # it may have no field set
    spec = v1.GenerationSpec(
        request_id=request_id,
        model=model,
        text=given if isinstance(given, str) else None,
        token_ids=given if isinstance(given, v1.TokenIds) else None,
        chat=given if isinstance(given, v1.ChatInput) else None,
        infill=given if isinstance(given, v1.InfillTemplate) else None,
        suffix=suffix,
        sampling=v1.SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            n=n,
            stop=v1.StopCriteria(strings=strings, token_ids=stop_ids)
            if strings or stop_ids
            else None,
            ignore_eos=ignore_eos,
            top_logprobs=top_logprobs,
            best_of=best_of,
        ),
        diffusion=diffusion,
        partial_on_deadline=partial_on_deadline,
        priority=priority,
        return_trajectory=return_trajectory,
        constraint=checked(constraint),
    )
    if latency_budget_s is not None:
        spec.latency_budget.FromNanoseconds(round(latency_budget_s * 1e9))
    return spec


def build_input(
    *,
    text: str | None = None,
    token_ids: Iterable[int] | None = None,
    messages: Iterable[Message] | None = None,
    tools: Iterable[v1.Tool] | None = None,
    tool_choice: str | v1.ToolChoice | None = None,
    parallel_tool_calls: bool | None = None,
    infill: Iterable[Segment] | None = None,
) -> ModelInput:
    """The one input that is given, as the contract has it."""
    given: list[tuple[str, ModelInput]] = []
    if text is not None:
        given.append(("text", text))
    if token_ids is not None:
        given.append(("token_ids", v1.TokenIds(ids=token_ids)))
    if messages is not None:
        told = [_message(m) for m in messages]
        chat = chat_input(told, tools, tool_choice, parallel_tool_calls)
        given.append(("messages", chat))
    elif (tools, tool_choice, parallel_tool_calls) != (None, None, None):
        raise ValueError("tools, tool_choice and parallel_tool_calls need messages")
    if infill is not None:
        given.append(("infill", v1.InfillTemplate(segments=[_segment(s) for s in infill])))
    if len(given) != 1:
        names = ", ".join(name for name, _ in given) or "nothing"
        raise ValueError(f"one of text, token_ids, messages and infill is required, got {names}")
    return given[0][1]


def build_stream_options(
    granularity: Granularity | None = None, stride: int | None = None
) -> v1.StreamOptions:
    """Which events a stream has."""
    return v1.StreamOptions(
        granularity=None
        if granularity is None
        else _choice("granularity", granularity, _GRANULARITIES),
        stride=stride,
    )


def build_count(
    *,
    text: str | None = None,
    token_ids: Iterable[int] | None = None,
    messages: Iterable[Message] | None = None,
    tools: Iterable[v1.Tool] | None = None,
    tool_choice: str | v1.ToolChoice | None = None,
    parallel_tool_calls: bool | None = None,
    infill: Iterable[Segment] | None = None,
    model: str = "",
) -> v1.CountTokensRequest:
    """The request of CountTokens."""
    given = build_input(
        text=text,
        token_ids=token_ids,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        infill=infill,
    )
    return v1.CountTokensRequest(
        model=model,
        text=given if isinstance(given, str) else None,
        token_ids=given if isinstance(given, v1.TokenIds) else None,
        chat=given if isinstance(given, v1.ChatInput) else None,
        infill=given if isinstance(given, v1.InfillTemplate) else None,
    )


def _message(message: Message) -> v1.ChatMessage:
    if isinstance(message, v1.ChatMessage):
        return message
    return v1.ChatMessage(
        role=_choice("role", message["role"], _ROLES),
        content=message.get("content") if message.get("tool_calls") else message["content"],
        tool_calls=message.get("tool_calls"),
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
    )


def _segment(segment: Segment) -> v1.InfillSegment:
    if isinstance(segment, str):
        return v1.InfillSegment(text=segment)
    if isinstance(segment, v1.Hole):
        return v1.InfillSegment(hole=segment)
    return v1.InfillSegment(token_ids=v1.TokenIds(ids=segment))


def _choice(name: str, value: str, choices: Mapping[str, T]) -> T:
    try:
        return choices[value]
    except KeyError:
        raise ValueError(f"{name} ({value}) must be one of {', '.join(choices)}") from None
