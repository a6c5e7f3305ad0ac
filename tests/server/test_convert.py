"""The contract's messages and the engine's types say the same, in both directions."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import pytest

from tests.conftest import TINY
from vdiff_grpc import v1
from vdiff_grpc.engine.events import Finished, FinishReason, Output, Tokens, TopTokens
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import STRATEGIES, DreamOrder, DreamSchedule, Remdm, Strategy
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams, SpanKind
from vdiff_grpc.engine.validation import defaults, limits_for, resolve
from vdiff_grpc.errors import FieldViolation
from vdiff_grpc.server.convert import replies, requests
from vdiff_grpc.server.convert.strategies import set_strategy, strategy_of

INFO = describe(str(TINY))
LIMITS = limits_for(EngineConfig(str(TINY)), INFO)
NAMED = [
    (kind, name, choice)
    for kind in STRATEGIES.values()
    for name, given in kind.ranges().items()
    for choice in (type(given.default) if isinstance(given.default, enum.Enum) else ())
]


def filled(kind: type[Strategy]) -> Strategy:
    """Every parameter set, each to something that is not its default."""
    values: dict[str, Any] = {}
    for number, (name, given) in enumerate(kind.ranges().items(), 1):
        if isinstance(given.default, enum.Enum):
            values[name] = list(type(given.default))[-1]
        else:
            values[name] = 3 + number if isinstance(given.default, int) else number / 8
    return kind(**values)


@pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)
def test_every_parameter_survives_the_way_there_and_back(kind: type[Strategy]) -> None:
    asked = filled(kind)
    if isinstance(asked, DreamSchedule):  # its last order has no temperature
        asked = dataclasses.replace(asked, order=DreamOrder.TOPK_MARGIN)
    diffusion, violations = v1.DiffusionParams(), list[FieldViolation]()
    set_strategy(diffusion, asked)
    assert diffusion.WhichOneof("strategy") == kind.NAME
    assert strategy_of(diffusion, violations) == asked
    assert not violations


@pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)
def test_what_is_not_said_is_none(kind: type[Strategy]) -> None:
    diffusion = v1.DiffusionParams()
    getattr(diffusion, kind.NAME).SetInParent()
    assert strategy_of(diffusion, []) == kind()
    assert strategy_of(v1.DiffusionParams(), []) is None


@pytest.mark.parametrize(("kind", "name", "choice"), NAMED, ids=str)
def test_every_choice_has_its_number(kind: type[Strategy], name: str, choice: enum.Enum) -> None:
    diffusion = v1.DiffusionParams()
    set_strategy(diffusion, kind(**{name: choice}))
    assert getattr(getattr(diffusion, kind.NAME), name) > 0
    assert getattr(strategy_of(diffusion, []), name) is choice


def test_a_choice_of_a_newer_contract_is_refused_by_name_and_number() -> None:
    for kind, name, _ in NAMED:
        diffusion, violations = v1.DiffusionParams(), list[FieldViolation]()
        setattr(getattr(diffusion, kind.NAME), name, 77)
        strategy_of(diffusion, violations)
        field = f"diffusion.{kind.NAME}.{name}"
        assert violations == [FieldViolation(field, f"{field} (77) is unknown")]


def test_explicit_zeros_are_not_silence() -> None:
    diffusion = v1.DiffusionParams(remdm=v1.Remdm(eta=0.0))
    assert strategy_of(diffusion, []) == Remdm(eta=0.0)
    spec = v1.GenerationSpec(token_ids=v1.TokenIds(ids=[1]))
    assert requests.request_of(spec, "r").params.top_logprobs is None
    spec.sampling.top_logprobs = 0
    assert requests.request_of(spec, "r").params.top_logprobs == 0


def test_the_surplus_of_a_last_block_is_a_span_of_its_own() -> None:
    info = dataclasses.replace(INFO, block_length=4, mask_token_id=None)
    asked = Request(TokensPrompt((1, 2, 3)), RequestParams(max_new_tokens=3))
    event = replies.started(info, resolve(asked, info, LIMITS, None), None)
    layout = event.started.layout
    assert [(span.kind, span.length) for span in layout.spans] == [
        (v1.SPAN_KIND_PROMPT, 3),
        (v1.SPAN_KIND_HOLE, 3),
        (v1.SPAN_KIND_SURPLUS, 2),
    ]
    contract = v1.CanvasSpan.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_name
    assert {f"SPAN_KIND_{kind.name}" for kind in SpanKind} == set(contract) - {
        "SPAN_KIND_UNSPECIFIED"
    }
    assert (event.started.prompt_tokens, layout.mask_token_id) == (3, info.vocab_size)
    counted = replies.count_tokens_response([], list(resolve(asked, info, LIMITS, None).spans))
    assert counted.tokens == 3


def test_model_info_tells_what_there_is_and_leaves_out_what_is_not() -> None:
    def told(**changes: Any) -> v1.GetModelInfoResponse:
        info = dataclasses.replace(INFO, **changes)
        return replies.model_info_response(
            info,
            ("a",),
            LIMITS,
            defaults(info, LIMITS),
            has_tokenizer=False,
            has_chat_template=False,
            supports_tools=False,
        )

    plain = told()
    assert (plain.HasField("block_length"), plain.auxiliary_model) == (False, "")
    assert plain.mask_token_id == 96
    other = told(block_length=4, mask_token_id=None, auxiliary="twin")
    assert (other.block_length, other.auxiliary_model) == (4, "twin")
    assert not other.HasField("mask_token_id")
    assert not plain.defaults.sampling.HasField("seed")


def test_likely_tokens_and_revisions_reach_the_reply() -> None:
    top = TopTokens((5, 6), (-0.5, -1.5), (b"a", b"b"))
    tokens = Tokens((5,), (3,), (0,), (0.6,), (b"a",), (0,), (top,))
    output = Output(0, 1, "a", tokens, (), FinishReason.LENGTH, None, 4, 3, 1, 2, 7, (1, 2, 3, 5))
    request = resolve(Request(TokensPrompt((1, 2, 3))), INFO, LIMITS, None)
    reply = replies.generate_response(INFO, request, Finished((output,), 1, 2, 3))
    assert reply.outputs[0].tokens.top_tokens == [
        v1.TopTokens(ids=[5, 6], logprobs=[-0.5, -1.5], token_bytes=[b"a", b"b"])
    ]
    assert (reply.metrics.remasked, reply.metrics.revised) == (2, 7)
