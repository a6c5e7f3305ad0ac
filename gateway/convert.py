"""From OpenAI's request to the contract's: pure functions, no IO.

The way back is replies.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from msgspec import UnsetType

from vdiff_grpc import v1

from .calls import CallReader
from .conversation import add_item, add_message
from .errors import ApiError, from_json, invalid
from .formats import client_name, constraint_of, text_constraint
from .infill import segment_name, set_template
from .openai import (
    CHAT_CHOICES,
    CHAT_DECODER,
    CHOICES,
    COMPLETION_DECODER,
    FIM_DECODER,
    MAX_PROMPTS,
    ChatRequest,
    CommonFields,
    CompletionRequest,
    FimRequest,
    GenerationFields,
)
from .openai_responses import LOGPROBS, RESPONSE_DECODER
from .refusals import check_chat, check_completion, check_fim, check_response
from .strategies import NAMES, set_strategy
from .tools import client_name as tool_name
from .tools import may_be_text, set_tools

_R = TypeVar("_R", bound=CommonFields)

# By the contract's own names.
CACHES: dict[str, Any] = {
    name.removeprefix("CACHE_POLICY_").lower(): number
    for name, number in v1.CachePolicy.items()
    if number
}

_HOLE_LENGTHS: dict[str, Any] = {
    "confidence": v1.HOLE_LENGTHS_CONFIDENCE,
    "native": v1.HOLE_LENGTHS_NATIVE,
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the client calls fields of GenerationSpec that have another name there.

    prompts: the input of each spec. holes: for each segment of a document with holes the name of
    its constraint.
    """

    max_new_tokens: str
    prompts: tuple[str, ...] = ("prompt",)
    top_logprobs: str = "top_logprobs"
    constraint: str = "response_format"
    holes: tuple[str, ...] | None = None
    flat_tools: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request as the gateway works on it.

    specs: one per prompt. echoes: the text that stands before each prompt's answers.
    top_logprobs: how many of the most likely tokens are told beside each; None when no
    probabilities are. may_call: the answer may have calls of tools.
    """

    request: CommonFields
    specs: tuple[v1.GenerationSpec, ...]
    names: Names
    echoes: tuple[str, ...]
    include_usage: bool
    top_logprobs: int | None
    may_call: bool = False

    def calls(self) -> CallReader | None:
        """A reader of one answer's calls, where it may have some."""
        return CallReader(may_be_text(self.specs[0].chat)) if self.may_call else None

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    @property
    def diffusing(self) -> bool:
        return bool(self.request.diffusing)

    def param(self, prompt_index: int, path: str) -> str | None:
        """The client's name for a field of GenerationSpec."""
        return _client_name(path.removeprefix("spec."), self.names, prompt_index)

    def stream_options(self) -> v1.StreamOptions:
        return v1.StreamOptions(
            granularity=v1.GRANULARITY_STEPS if self.diffusing else v1.GRANULARITY_COMMITTED
        )


def parse_completion(body: bytes) -> Job:
    """Raises ApiError."""
    request = _decoded(COMPLETION_DECODER, body)
    check_completion(request)
    specs = []
    echoes = []
    holes: tuple[str, ...] | None = None
    prompt_is_list, prompts = _prompts(request)
    for prompt in prompts:
        spec = _spec(request, _max_new_tokens(request))
        if request.infill is not None:
            holes = set_template(spec, request.infill)
            spec.MergeFrom(v1.GenerationSpec(suffix=request.suffix))
        elif isinstance(prompt, str):
            _set_text(spec, prompt, request)
        else:
            spec.token_ids.ids.extend(prompt)
            spec.token_ids.SetInParent()
        if (request.best_of or 1) > (request.n or 1):  # else there is nothing to choose from
            spec.sampling.best_of = request.best_of or 1
        specs.append(spec)
        echoes.append(prompt if request.echo and isinstance(prompt, str) else "")
    names = Names(
        _max_tokens_name(request, "max_tokens"),
        tuple(f"prompt[{i}]" for i in range(len(specs))) if prompt_is_list else ("prompt",),
        top_logprobs="logprobs",
        holes=holes,
    )
    return _job(request, specs, names, request.logprobs, echoes)


def parse_fim(body: bytes) -> Job:
    """Raises ApiError."""
    request = _decoded(FIM_DECODER, body)
    check_fim(request)
    spec = _spec(request, _max_new_tokens(request))
    _set_text(spec, request.prompt, request)
    if request.random_seed is not None:
        spec.sampling.seed = request.random_seed % 2**64
    names = Names(_max_tokens_name(request, "max_tokens"))
    return _job(request, [spec], names, _chat_top_logprobs(request))


def parse_chat(body: bytes) -> Job:
    """Raises ApiError."""
    request = _decoded(CHAT_DECODER, body, CHAT_CHOICES)
    check_chat(request)
    spec = _spec(request, _max_new_tokens(request))
    for message in request.messages:
        add_message(spec.chat, message)
    calls = set_tools(spec.chat, request.tools, request.tool_choice, request.parallel_tool_calls)
    names = Names(_max_tokens_name(request, "max_completion_tokens"), ("messages",))
    return _job(request, [spec], names, _chat_top_logprobs(request), may_call=calls)


def parse_response(body: bytes) -> Job:
    """Raises ApiError."""
    request = _decoded(RESPONSE_DECODER, body)
    check_response(request)
    spec = _spec(request, request.max_output_tokens)
    if request.instructions is not None:
        spec.chat.messages.add(role=v1.ROLE_SYSTEM, content=request.instructions)
    if isinstance(request.input, str):
        spec.chat.messages.add(role=v1.ROLE_USER, content=request.input)
    else:
        for item in request.input:
            add_item(spec.chat, item)
    if request.text is not None and (asked := text_constraint(request.text.format)) is not None:
        spec.constraint.CopyFrom(asked)
    calls = set_tools(spec.chat, request.tools, request.tool_choice, request.parallel_tool_calls)
    names = Names("max_output_tokens", ("input",), constraint="text.format", flat_tools=True)
    top_logprobs = (request.top_logprobs or 0) if LOGPROBS in (request.include or ()) else None
    return _job(request, [spec], names, top_logprobs, may_call=calls)


def _decoded(
    decoder: msgspec.json.Decoder[_R], body: bytes, choices: dict[str, tuple[str, ...]] = CHOICES
) -> _R:
    """JSON has one kind of number: 16.0 is an integer, and some clients write it so."""
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return msgspec.convert(_WHOLE_NUMBERS.decode(body), decoder.type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_json(error, body, choices) from None


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_WHOLE_NUMBERS = msgspec.json.Decoder(float_hook=_number)


def _job(
    request: CommonFields,
    specs: list[v1.GenerationSpec],
    names: Names,
    top_logprobs: int | None,
    echoes: Sequence[str] = ("",),
    *,
    may_call: bool = False,
) -> Job:
    for spec in specs:
        if top_logprobs:
            spec.sampling.top_logprobs = top_logprobs
    if isinstance(request, GenerationFields):
        constraint, name = constraint_of(
            request.response_format, request.guided_regex, request.guided_choice
        )
        names = replace(names, constraint=name)
        for spec in specs:
            if constraint is not None:
                _holder(spec, names).constraint.CopyFrom(constraint)
    options = request.stream_options if isinstance(request, GenerationFields) else None
    return Job(
        request=request,
        specs=tuple(specs),
        names=names,
        echoes=tuple(echoes),
        include_usage=bool(options and options.include_usage),
        top_logprobs=top_logprobs,
        may_call=may_call,
    )


def _holder(spec: v1.GenerationSpec, names: Names) -> v1.GenerationSpec | v1.Hole:
    """What a constraint is set on: a gap of a length to be chosen has its own."""
    is_gap = spec.HasField("infill") and names.holes is None
    return spec.infill.segments[1].hole if is_gap else spec


def _set_text(
    spec: v1.GenerationSpec, prompt: str, request: CompletionRequest | FimRequest
) -> None:
    """The prompt, and what follows it behind a gap: of max_tokens, or of a length to be chosen."""
    if not request.min_tokens or request.suffix is None:
        spec.text = prompt
        if request.suffix is not None:
            spec.suffix = request.suffix
        return
    longest = spec.sampling.max_new_tokens
    spec.sampling.ClearField("max_new_tokens")
    spec.infill.segments.add(text=prompt)
    gap = spec.infill.segments.add().hole
    gap.min_length, gap.max_length = request.min_tokens, longest
    spec.infill.segments.add(text=request.suffix)


def _max_new_tokens(request: GenerationFields) -> int | None:
    return request.max_completion_tokens or request.max_tokens


def _max_tokens_name(request: GenerationFields, default: str) -> str:
    if request.max_completion_tokens is not None:
        return "max_completion_tokens"
    return default if request.max_tokens is None else "max_tokens"


def _chat_top_logprobs(request: ChatRequest | FimRequest) -> int | None:
    return (request.top_logprobs or 0) if request.logprobs else None


def _prompts(request: CompletionRequest) -> tuple[bool, list[str | list[int]]]:
    """Whether the client sent a list of prompts, and the prompts."""
    prompt = "" if isinstance(request.prompt, UnsetType) else request.prompt
    if isinstance(prompt, str):
        return False, [prompt]
    if not prompt:
        raise invalid("prompt ([]) must not be empty", "prompt")
    if all(isinstance(item, int) for item in prompt):
        return False, [[item for item in prompt if isinstance(item, int)]]
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"prompt has {len(prompt)} prompts; the limit is {MAX_PROMPTS}", "prompt")
    prompts: list[str | list[int]] = []
    for i, item in enumerate(prompt):
        if isinstance(item, int) or not isinstance(item, type(prompt[0])):
            raise _mixed_prompt()
        if not item and isinstance(item, list):
            raise invalid(f"prompt[{i}] ([]) must not be empty", f"prompt[{i}]")
        prompts.append(item)
    return True, prompts


def _mixed_prompt() -> ApiError:
    return invalid(
        "prompt: expected text, token ids, a list of texts or a list of lists of token ids, "
        "got a mixture",
        "prompt",
    )


def _spec(request: CommonFields, max_new_tokens: int | None) -> v1.GenerationSpec:
    """Everything but the input. What the client left out stays absent."""
    spec = v1.GenerationSpec(model=request.model or "")
    sampling, diffusion = spec.sampling, spec.diffusion
    if max_new_tokens is not None:
        sampling.max_new_tokens = max_new_tokens
    if request.temperature is not None:
        sampling.temperature = request.temperature
    if request.top_p is not None:
        sampling.top_p = request.top_p
    if request.top_k is not None:
        sampling.top_k = request.top_k
    if request.seed is not None:
        sampling.seed = request.seed % 2**64
    if request.n is not None:
        sampling.n = request.n
    if request.stop is not None:
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        sampling.stop.strings.extend(stop)
    if request.ignore_eos is not None:
        sampling.ignore_eos = request.ignore_eos
    if request.steps is not None:
        diffusion.steps = request.steps
    if request.block_length is not None:
        diffusion.block_length = request.block_length
    if request.cfg_scale is not None:
        diffusion.cfg_scale = request.cfg_scale
    if request.cache is not None:
        diffusion.cache = CACHES[request.cache]
    if request.cache_refresh_steps is not None:
        diffusion.cache_refresh_steps = request.cache_refresh_steps
    if request.suffix_window is not None:
        diffusion.suffix_window = request.suffix_window
    if request.hole_lengths is not None:
        diffusion.hole_lengths = _HOLE_LENGTHS[request.hole_lengths]
    if request.strategy is not None:
        set_strategy(diffusion, request.strategy)
    if request.partial_on_deadline is not None:
        spec.partial_on_deadline = request.partial_on_deadline
    if request.priority is not None:
        spec.priority = request.priority
    if request.return_trajectory is not None:
        spec.return_trajectory = request.return_trajectory
    if request.latency_budget_ms is not None:
        spec.latency_budget.FromMilliseconds(request.latency_budget_ms)
    return spec


# --- names ------------------------------------------------------------------


def _client_name(path: str, names: Names, prompt_index: int) -> str | None:
    """`sampling.max_new_tokens` -> `max_tokens`; None for what the client's API does not have."""
    prompt = names.prompts[prompt_index]
    if path.startswith("token_ids"):
        return prompt + path.removeprefix("token_ids").removeprefix(".ids")
    if path.startswith(("chat.tools", "chat.tool_choice")):
        return tool_name(path.removeprefix("chat."), flat=names.flat_tools)
    if path.startswith(("text", "input", "chat")):
        return prompt
    if path == "latency_budget":
        return "latency_budget_ms"
    if names.holes is None and ".hole.constraint" in path:
        path = path.removeprefix("infill.segments[1].hole.")
    if path.startswith("constraint"):
        return client_name(path, names.constraint)
    if path in ("model", "suffix", "priority", "return_trajectory"):
        return path
    if path.startswith("infill") and names.holes is not None:
        return segment_name(path, names.holes)
    if path.startswith("infill"):  # a gap whose length is to be chosen
        ends = {".min_length": "min_tokens", "[0].text": prompt, "[2].text": "suffix"}
        named = (name for end, name in ends.items() if path.endswith(end))
        return next(named, "suffix" if path == "infill" else names.max_new_tokens)
    if path.startswith("sampling.stop"):
        return "stop"
    if path == "sampling.max_new_tokens":
        return names.max_new_tokens
    if path == "sampling.top_logprobs":
        return names.top_logprobs
    section, _, name = path.partition(".")
    if section == "diffusion" and (case := name.partition(".")[0]) in NAMES:
        return "strategy" + name.removeprefix(case)
    return name if section in ("sampling", "diffusion") and name else None
