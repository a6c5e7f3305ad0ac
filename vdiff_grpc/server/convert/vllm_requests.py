"""vLLM's contract's requests as the engine's types, and the engine's refusals in its words.

What that contract can ask and this engine cannot do is refused here, each by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vdiff_grpc import vllm
from vdiff_grpc.engine import prompt_types, types
from vdiff_grpc.errors import FieldViolation, InvalidRequestError

_MAX_ABORTED = 1024

# Values that ask for nothing. 0 is also what this contract gives where a caller said nothing.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (0, 1),
    "min_tokens": (0,),
    "grammar_from_first_token": (0,),
}
_UNSERVED_PARAMS = ("prompt_logprobs", "truncate_prompt_tokens")
_UNSERVED = ("kv_transfer_params", "mm_inputs", "kv_transfer_params_json", "media_refs")

# Beginnings of the engine's field paths, and this contract's.
_PATHS = {
    "sampling.max_new_tokens": "sampling_params.max_tokens",
    "sampling.top_logprobs": "sampling_params.logprobs",
    "sampling.stop.strings": "sampling_params.stop",
    "sampling.stop.token_ids": "sampling_params.stop_token_ids",
    "sampling.": "sampling_params.",
    "token_ids.ids": "tokenized.input_ids",
}
_WORDS = {
    "max_new_tokens": "max_tokens",
    "top_logprobs": "logprobs",
    "token_ids.ids": "tokenized.input_ids",
}


@contextmanager
def renamed() -> Iterator[None]:
    """Gives violations found inside, whose paths are GenerationSpec's, this contract's names."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError([_renamed(v) for v in error.violations]) from error


def request_of(request: vllm.GenerateRequest, name: str) -> types.Request:
    """`name`: the request's id. Raises InvalidRequestError with every violation met here."""
    violations = [*_unserved(request), *_unserved_params(request.sampling_params)]
    match request.WhichOneof("input"):
        case "tokenized":
            prompt: prompt_types.Prompt = prompt_types.TokensPrompt(
                tuple(request.tokenized.input_ids)
            )
        case "text":
            prompt = prompt_types.TextPrompt(request.text)
        case _:
            what = "input is not set; it must be one of tokenized, text"
            violations.append(FieldViolation("input", what))
    if violations:
        raise InvalidRequestError(violations)
    granularity = types.Granularity.COMMITTED if request.stream else types.Granularity.NONE
    return types.Request(prompt, _params(request.sampling_params), name, granularity)


def aborted_ids(request: vllm.AbortRequest) -> list[str]:
    """Raises InvalidRequestError."""
    if len(request.request_ids) > _MAX_ABORTED:
        what = f"request_ids has {len(request.request_ids)} ids; the limit is {_MAX_ABORTED}"
        raise InvalidRequestError([FieldViolation("request_ids", what)])
    return list(request.request_ids)


def refuse_other_ranks(field: str, rank: int) -> None:
    """Raises InvalidRequestError."""
    if rank:
        what = f"{field} ({rank}) must be 0: a server is one rank"
        raise InvalidRequestError([FieldViolation(field, what)])


def _params(params: vllm.SamplingParams) -> types.RequestParams:
    return types.RequestParams(
        max_new_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        temperature=params.temperature if params.HasField("temperature") else None,
        top_p=params.top_p or None,
        top_k=params.top_k,
        seed=params.seed if params.HasField("seed") else None,
        n=params.n or None,
        stop_strings=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        top_logprobs=params.logprobs if params.HasField("logprobs") else None,
    )


def _unserved(request: vllm.GenerateRequest) -> Iterator[FieldViolation]:
    for field in _UNSERVED:
        if request.HasField(field):
            yield _unset(field)
    if request.extra_mm_inputs:
        yield _unset("extra_mm_inputs")
    try:
        refuse_other_ranks("data_parallel_rank", request.data_parallel_rank)
    except InvalidRequestError as error:
        yield from error.violations


def _unserved_params(params: vllm.SamplingParams) -> Iterator[FieldViolation]:
    for field, neutral in _NEUTRAL.items():
        value = getattr(params, field)
        if value not in neutral:  # NaN is in none
            yield _unset(f"sampling_params.{field}", f" ({value:g})")
    for field in _UNSERVED_PARAMS:
        if params.HasField(field):
            yield _unset(f"sampling_params.{field}", f" ({getattr(params, field)})")
    if params.logit_bias:
        yield _unset("sampling_params.logit_bias")
    if constraint := params.WhichOneof("constraint"):
        yield _unset(f"sampling_params.{constraint}")


def _unset(field: str, value: str = "") -> FieldViolation:
    return FieldViolation(field, f"{field}{value} cannot be set: this server has no such thing")


def _renamed(violation: FieldViolation) -> FieldViolation:
    field, description = violation.field, violation.description
    for ours, theirs in _PATHS.items():
        if field.startswith(ours):
            field = theirs + field.removeprefix(ours)
            break
    for ours, theirs in _WORDS.items():
        description = description.replace(ours, theirs)
    return FieldViolation(field, description)
