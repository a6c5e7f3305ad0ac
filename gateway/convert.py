"""From OpenAI's request to the contract's: pure functions, no IO.

The way back is replies.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from vdiff_grpc import v1

from .errors import ApiError, from_json, invalid
from .openai import (
    CHAT_DECODER,
    CHOICES,
    COMPLETION_DECODER,
    MAX_PROMPTS,
    CompletionRequest,
    GenerationFields,
)
from .refusals import check_chat, check_completion
from .strategies import NAMES, set_strategy

_T = TypeVar("_T")

_ROLES = {
    "system": v1.ROLE_SYSTEM,
    "developer": v1.ROLE_SYSTEM,
    "user": v1.ROLE_USER,
    "assistant": v1.ROLE_ASSISTANT,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request as the gateway works on it.

    specs: one per prompt. echoes: the text that stands before each prompt's answers.
    max_tokens_name: how the client called max_new_tokens. top_logprobs: how many of the most
    likely tokens are told beside each; None when no probabilities are.
    """

    kind: Literal["completion", "chat"]
    specs: tuple[v1.GenerationSpec, ...]
    echoes: tuple[str, ...]
    prompt_is_list: bool
    stream: bool
    include_usage: bool
    diffusing: bool
    max_tokens_name: str
    top_logprobs: int | None

    def param(self, prompt_index: int, path: str) -> str | None:
        """The client's name for a field of GenerationSpec."""
        prompt = f"prompt[{prompt_index}]" if self.prompt_is_list else "prompt"
        return _openai_name(path, self.kind, self.max_tokens_name, prompt)

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
    prompt_is_list, prompts = _prompts(request)
    for prompt in prompts:
        spec = _spec(request)
        if isinstance(prompt, str):
            spec.text = prompt
        else:
            spec.token_ids.ids.extend(prompt)
            spec.token_ids.SetInParent()
        if request.suffix is not None:
            spec.suffix = request.suffix
        specs.append(spec)
        echoes.append(prompt if request.echo and isinstance(prompt, str) else "")
    return _job("completion", request, specs, echoes, prompt_is_list, request.logprobs)


def parse_chat(body: bytes) -> Job:
    """Raises ApiError."""
    request = _decoded(CHAT_DECODER, body)
    check_chat(request)
    spec = _spec(request)
    for message in request.messages:
        content = message.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content if isinstance(part.text, str))
        spec.chat.messages.add(role=_ROLES[message.role], content=content)
    top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _job("chat", request, [spec], [""], False, top_logprobs)


def _decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """JSON has one kind of number: 16.0 is an integer, and some clients write it so."""
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return msgspec.convert(_WHOLE_NUMBERS.decode(body), decoder.type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_json(error, body, CHOICES) from None


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_WHOLE_NUMBERS = msgspec.json.Decoder(float_hook=_number)


def _job(
    kind: Literal["completion", "chat"],
    request: GenerationFields,
    specs: list[v1.GenerationSpec],
    echoes: list[str],
    prompt_is_list: bool,
    top_logprobs: int | None,
) -> Job:
    for spec in specs:
        if top_logprobs:
            spec.sampling.top_logprobs = top_logprobs
    new_name = request.max_completion_tokens is not None or (
        kind == "chat" and request.max_tokens is None
    )
    return Job(
        kind=kind,
        specs=tuple(specs),
        echoes=tuple(echoes),
        prompt_is_list=prompt_is_list,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        diffusing=bool(request.diffusing),
        max_tokens_name="max_completion_tokens" if new_name else "max_tokens",
        top_logprobs=top_logprobs,
    )


def _prompts(request: CompletionRequest) -> tuple[bool, list[str | list[int]]]:
    """Whether the client sent a list of prompts, and the prompts."""
    prompt = request.prompt
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


def _spec(request: GenerationFields) -> v1.GenerationSpec:
    """Everything but the input. What the client left out stays absent."""
    spec = v1.GenerationSpec(model=request.model or "")
    sampling, diffusion = spec.sampling, spec.diffusion
    max_new_tokens = request.max_completion_tokens or request.max_tokens
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
    if request.strategy is not None:
        set_strategy(diffusion, request.strategy)
    if request.partial_on_deadline is not None:
        spec.partial_on_deadline = request.partial_on_deadline
    return spec


# --- names ------------------------------------------------------------------


def _openai_name(path: str, kind: str, max_tokens_name: str, prompt_name: str) -> str | None:
    """`sampling.max_new_tokens` -> `max_tokens`; None for what OpenAI's API does not have."""
    path = path.removeprefix("spec.")
    if path.startswith("chat"):
        return path.removeprefix("chat").removeprefix(".") or "messages"
    if path.startswith("token_ids"):
        return prompt_name + path.removeprefix("token_ids").removeprefix(".ids")
    if path.startswith(("text", "input")):
        return prompt_name
    if path in ("model", "suffix"):
        return path
    if path.startswith("sampling.stop"):
        return "stop"
    if path == "sampling.max_new_tokens":
        return max_tokens_name
    section, _, name = path.partition(".")
    if section == "diffusion" and (case := name.partition(".")[0]) in NAMES:
        return "strategy" + name.removeprefix(case)
    if path == "sampling.top_logprobs" and kind == "completion":
        return "logprobs"
    return name if section in ("sampling", "diffusion") and name else None
