"""The contract's requests as the engine's types.

What cannot be said in the engine's types (an unset oneof, an enum value of a newer contract, a
field this build does not know) is refused here; all else is validation's business.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from vdiff_grpc import v1, vllm
from vdiff_grpc.engine import prompt_types, types
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.constraints import kinds as constraints
from vdiff_grpc.errors import FieldViolation, InvalidRequestError
from vdiff_grpc.server.convert.strategies import strategy_of

_MAX_REQUEST_ID = 128
_MAX_NAMED = 256  # items searched for an unknown field: its name is not worth the time of more
_INPUTS = "one of text, token_ids, chat, infill"

_ROLES = {
    v1.ROLE_SYSTEM: "system",
    v1.ROLE_USER: "user",
    v1.ROLE_ASSISTANT: "assistant",
    v1.ROLE_TOOL: "tool",
}
_TOOL_MODES = {
    v1.TOOL_MODE_UNSPECIFIED: prompt_types.ToolMode.AUTO,
    v1.TOOL_MODE_NONE: prompt_types.ToolMode.NONE,
    v1.TOOL_MODE_AUTO: prompt_types.ToolMode.AUTO,
    v1.TOOL_MODE_REQUIRED: prompt_types.ToolMode.REQUIRED,
}
_CACHES: dict[int, CacheKind] = {
    getattr(v1, f"CACHE_POLICY_{kind.name}"): kind for kind in CacheKind
}
_LENGTH_CHOICES: dict[int, prompt_types.LengthChoice] = {
    getattr(v1, f"HOLE_LENGTHS_{choice.name}"): choice for choice in prompt_types.LengthChoice
}
_GRANULARITIES = {
    v1.GRANULARITY_UNSPECIFIED: types.Granularity.COMMITTED,
    v1.GRANULARITY_COMMITTED: types.Granularity.COMMITTED,
    v1.GRANULARITY_STEPS: types.Granularity.STEPS,
    v1.GRANULARITY_SNAPSHOTS: types.Granularity.SNAPSHOTS,
}


@contextmanager
def located(path: str) -> Iterator[None]:
    """Puts `path.` before the fields of violations found inside."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(
            [FieldViolation(f"{path}.{v.field}", v.description) for v in error.violations]
        ) from error


def refuse_unknown_fields(request: Message) -> None:
    """A field that this build does not know is refused, by number: it could not be honoured."""
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() == request.ByteSize():
        return
    violations = list(_unknown_fields(request, ""))
    if not violations:
        violations = [FieldViolation("", "the request has a field that this server does not know")]
    raise InvalidRequestError(violations)


def request_id(request: Message | None, metadata: Mapping[str, str]) -> str:
    """The caller's name for the request, or a new one. Raises InvalidRequestError."""
    spec = getattr(request, "spec", None)
    if isinstance(spec, v1.GenerationSpec) and spec.request_id:
        field, value = "spec.request_id", spec.request_id
    elif isinstance(request, vllm.GenerateRequest) and request.request_id:
        field, value = "request_id", request.request_id
    elif metadata.get("x-request-id"):
        field, value = "x-request-id", metadata["x-request-id"]
    else:
        return uuid.uuid4().hex
    _check_id(field, value)
    return value


def cancelled_id(request: v1.CancelRequestRequest) -> str:
    """The id of the request to cancel. Raises InvalidRequestError."""
    if not request.request_id:
        raise InvalidRequestError([FieldViolation("request_id", "request_id is not set")])
    _check_id("request_id", request.request_id)
    return request.request_id


def stream_options(options: v1.StreamOptions) -> tuple[types.Granularity, int]:
    """Granularity and stride."""
    granularity = _GRANULARITIES.get(options.granularity)
    if granularity is None:
        raise InvalidRequestError([_not_in_enum("granularity", options.granularity)])
    if not options.HasField("stride"):
        return granularity, 1
    if granularity is types.Granularity.COMMITTED:
        what = f"stride ({options.stride}) needs granularity STEPS or SNAPSHOTS"
        raise InvalidRequestError([FieldViolation("stride", what)])
    if options.stride < 1:
        what = f"stride ({options.stride}) must be at least 1"
        raise InvalidRequestError([FieldViolation("stride", what)])
    return granularity, options.stride


def request_of(
    spec: v1.GenerationSpec,
    name: str,
    granularity: types.Granularity = types.Granularity.NONE,
    stride: int = 1,
) -> types.Request:
    """`name`: the request's id. Raises InvalidRequestError with every violation met here."""
    violations: list[FieldViolation] = []
    prompt = _prompt(spec, violations)
    if spec.HasField("suffix"):
        if isinstance(prompt, prompt_types.TextPrompt):
            prompt = prompt_types.TextPrompt(prompt.text, spec.suffix)
        else:
            violations.append(FieldViolation("suffix", "suffix needs the input to be text"))
    params = _params(spec.sampling, spec.diffusion, violations)
    constraint = _constraint(spec, "constraint", violations)
    if violations or prompt is None:
        raise InvalidRequestError(violations)
    partial = spec.partial_on_deadline
    priority = spec.priority if spec.HasField("priority") else None
    budget_ns = spec.latency_budget.ToNanoseconds() if spec.HasField("latency_budget") else None
    return types.Request(
        prompt,
        params,
        name,
        granularity,
        stride,
        partial,
        priority,
        budget_ns,
        return_trajectory=spec.return_trajectory,
        constraint=constraint,
    )


def prompt_of(request: v1.CountTokensRequest) -> prompt_types.Prompt:
    violations: list[FieldViolation] = []
    prompt = _prompt(request, violations)
    if violations or prompt is None:
        raise InvalidRequestError(violations)
    return prompt


def _check_id(field: str, value: str) -> None:
    if len(value) > _MAX_REQUEST_ID:
        what = f"{field} has {len(value)} characters; the limit is {_MAX_REQUEST_ID}"
        raise InvalidRequestError([FieldViolation(field, what)])
    if not (value.isascii() and value.isprintable()):
        what = f"{field} ({value!r}) must be printable ASCII"
        raise InvalidRequestError([FieldViolation(field, what)])


def _unknown_fields(message: Message, path: str) -> Iterator[FieldViolation]:
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]
        number = unknown.field_number
        what = f"{path or 'the request'} has a field {number} that this server does not know"
        yield FieldViolation(f"{path}.{number}".lstrip("."), what)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        field = f"{path}.{descriptor.name}".lstrip(".")
        if isinstance(value, Message):
            yield from _unknown_fields(value, field)
        else:
            for index, item in enumerate(value[:_MAX_NAMED]):
                yield from _unknown_fields(item, f"{field}[{index}]")


def _prompt(
    message: v1.GenerationSpec | v1.CountTokensRequest, violations: list[FieldViolation]
) -> prompt_types.Prompt | None:
    match message.WhichOneof("input"):
        case "text":
            return prompt_types.TextPrompt(message.text)
        case "token_ids":
            return prompt_types.TokensPrompt(tuple(message.token_ids.ids))
        case "chat":
            return _chat(message.chat, violations)
        case "infill":
            return _infill(message.infill.segments, violations)
        case _:
            violations.append(FieldViolation("input", f"input is not set; it must be {_INPUTS}"))
            return None


def _chat(chat: v1.ChatInput, violations: list[FieldViolation]) -> prompt_types.ChatPrompt:
    turns = []
    for index, message in enumerate(chat.messages):
        role = _ROLES.get(message.role)
        if role is None:
            violations.append(_not_in_enum(f"chat.messages[{index}].role", message.role))
        else:
            calls = (prompt_types.ToolCall(c.id, c.name, c.arguments) for c in message.tool_calls)
            turns.append(
                prompt_types.ChatMessage(
                    role, message.content, tuple(calls), message.tool_call_id, message.name
                )
            )
    tools = tuple(
        prompt_types.Tool(tool.name, tool.description, tool.parameters) for tool in chat.tools
    )
    return prompt_types.ChatPrompt(tuple(turns), tools, _tool_choice(chat, violations))


def _tool_choice(
    chat: v1.ChatInput, violations: list[FieldViolation]
) -> prompt_types.ToolChoice | None:
    if not chat.HasField("tool_choice"):
        return None
    asked = chat.tool_choice
    parallel = asked.parallel if asked.HasField("parallel") else True
    if asked.WhichOneof("choice") == "name":
        if not asked.name:
            what = "chat.tool_choice.name is empty"
            violations.append(FieldViolation("chat.tool_choice.name", what))
        return prompt_types.ToolChoice(prompt_types.ToolMode.REQUIRED, asked.name, parallel)
    mode = _TOOL_MODES.get(asked.mode)
    if mode is None:
        violations.append(_not_in_enum("chat.tool_choice.mode", asked.mode))
        return None
    return prompt_types.ToolChoice(mode, parallel=parallel)


def _infill(
    segments: Iterable[v1.InfillSegment], violations: list[FieldViolation]
) -> prompt_types.InfillPrompt:
    parts: list[str | tuple[int, ...] | prompt_types.Hole] = []
    for index, segment in enumerate(segments):
        match segment.WhichOneof("kind"):
            case "text":
                parts.append(segment.text)
            case "token_ids":
                parts.append(tuple(segment.token_ids.ids))
            case "hole":
                path = f"infill.segments[{index}].hole.constraint"
                constraint = _constraint(segment.hole, path, violations)
                parts.append(_hole(segment.hole, constraint))
            case _:
                field = f"infill.segments[{index}]"
                what = f"{field} is not set; it must be one of text, token_ids, hole"
                violations.append(FieldViolation(field, what))
    return prompt_types.InfillPrompt(tuple(parts))


def _hole(hole: v1.Hole, constraint: constraints.Constraint | None) -> prompt_types.Hole:
    return prompt_types.Hole(
        hole.length,
        hole.min_length if hole.HasField("min_length") else None,
        hole.max_length if hole.HasField("max_length") else None,
        constraint,
    )


def _constraint(
    message: v1.GenerationSpec | v1.Hole, path: str, violations: list[FieldViolation]
) -> constraints.Constraint | None:
    if not message.HasField("constraint"):
        return None
    asked = message.constraint
    match asked.WhichOneof("kind"):
        case "regex":
            return constraints.RegexConstraint(asked.regex)
        case "choice":
            return constraints.ChoiceConstraint(tuple(asked.choice.options))
        case "json_schema":
            return constraints.JsonSchemaConstraint(asked.json_schema)
    what = f"{path} is not set; it must be one of regex, choice, json_schema"
    violations.append(FieldViolation(path, what))
    return None


def _params(
    sampling: v1.SamplingParams, diffusion: v1.DiffusionParams, violations: list[FieldViolation]
) -> types.RequestParams:
    return types.RequestParams(
        max_new_tokens=sampling.max_new_tokens if sampling.HasField("max_new_tokens") else None,
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        n=sampling.n if sampling.HasField("n") else None,
        stop_strings=tuple(sampling.stop.strings),
        stop_token_ids=tuple(sampling.stop.token_ids),
        ignore_eos=sampling.ignore_eos if sampling.HasField("ignore_eos") else None,
        block_length=diffusion.block_length if diffusion.HasField("block_length") else None,
        steps=diffusion.steps if diffusion.HasField("steps") else None,
        cfg_scale=diffusion.cfg_scale if diffusion.HasField("cfg_scale") else None,
        strategy=strategy_of(diffusion, violations),
        top_logprobs=sampling.top_logprobs if sampling.HasField("top_logprobs") else None,
        best_of=sampling.best_of if sampling.HasField("best_of") else None,
        cache=_cache(diffusion, violations),
        cache_refresh_steps=diffusion.cache_refresh_steps
        if diffusion.HasField("cache_refresh_steps")
        else None,
        suffix_window=diffusion.suffix_window if diffusion.HasField("suffix_window") else None,
        hole_lengths=_hole_lengths(diffusion, violations),
    )


def _hole_lengths(
    diffusion: v1.DiffusionParams, violations: list[FieldViolation]
) -> prompt_types.LengthChoice | None:
    if diffusion.hole_lengths == v1.HOLE_LENGTHS_UNSPECIFIED:
        return None
    choice = _LENGTH_CHOICES.get(diffusion.hole_lengths)
    if choice is None:
        violations.append(_not_in_enum("diffusion.hole_lengths", diffusion.hole_lengths))
    return choice


def _cache(diffusion: v1.DiffusionParams, violations: list[FieldViolation]) -> CacheKind | None:
    if diffusion.cache == v1.CACHE_POLICY_UNSPECIFIED:
        return None
    kind = _CACHES.get(diffusion.cache)
    if kind is None:
        violations.append(_not_in_enum("diffusion.cache", diffusion.cache))
    return kind


def _not_in_enum(field: str, value: int) -> FieldViolation:
    what = f"{field} ({value}) is not set" if value == 0 else f"{field} ({value}) is unknown"
    return FieldViolation(field, what)
