"""Every wrong field is refused by name and value, and a neighbour never notices."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from tests.conftest import RunningServer
from tests.server.calls import MASK, generate, long_spec, reason, spec, stream, violations
from vdiff_grpc import v1
from vdiff_grpc.engine.strategies import STRATEGIES


def changed(**fields: Any) -> v1.GenerationSpec:
    """A good spec with some fields set to something bad."""
    asked = spec()
    for path, value in fields.items():
        *parents, name = path.split("__")
        message = asked
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif isinstance(value, str | int | float):
            setattr(message, name, value)
        else:
            getattr(message, name).CopyFrom(value)
    return asked


def templated(*segments: v1.InfillSegment) -> v1.GenerationSpec:
    asked = spec()
    asked.sampling.ClearField("max_new_tokens")
    asked.infill.segments.extend(segments)
    asked.infill.SetInParent()
    return asked


def with_input(**value: Any) -> v1.GenerationSpec:
    return v1.GenerationSpec(**value)


def beyond_its_range() -> list[tuple[v1.GenerationSpec, str, str]]:
    """Every parameter of every strategy, just above what it may be."""
    found = []
    for kind in STRATEGIES.values():
        if kind.NAME in ("adaptive_parallel", "uniform_noise"):
            continue  # refused here whatever their parameters say
        for name, given in kind.ranges().items():
            asked = spec()
            message = getattr(asked.diffusion, kind.NAME)
            field = message.DESCRIPTOR.fields_by_name[name]
            value = 99 if field.enum_type else int(given.high) + 1
            if name in ("t_on", "t_off", "alpha_on"):
                message.mode = v1.REMDM_MODE_LOOP
            setattr(message, name, value)
            found.append((asked, f"diffusion.{kind.NAME}.{name}", f"({value})"))
    return found


GIVEN = v1.InfillSegment(token_ids=v1.TokenIds(ids=[1]))
ROLELESS = v1.ChatInput(messages=[v1.ChatMessage(content="hello")])
CHAT = v1.ChatInput(messages=[v1.ChatMessage(role=v1.ROLE_USER, content="hello")])
THRESHOLD = v1.ConfidenceThreshold

BAD = [
    (v1.GenerationSpec(), "input", "not set"),
    (with_input(text="hello"), "text", "no tokenizer"),
    (with_input(chat=CHAT), "chat", "no chat template"),
    (with_input(chat=v1.ChatInput()), "chat.messages", "empty"),
    (with_input(chat=ROLELESS), "chat.messages[0].role", "(0)"),
    (with_input(token_ids=v1.TokenIds()), "token_ids.ids", "empty"),
    (with_input(token_ids=v1.TokenIds(ids=[1, 97])), "token_ids.ids[1]", "(97)"),
    (with_input(token_ids=v1.TokenIds(ids=[1, MASK])), "token_ids.ids", f"{MASK}"),
    (changed(suffix="x"), "suffix", "text"),
    (templated(), "infill.segments", "no hole"),
    (templated(GIVEN), "infill.segments", "no hole"),
    (templated(GIVEN, v1.InfillSegment()), "infill.segments[1]", "not set"),
    (templated(GIVEN, v1.InfillSegment(hole=v1.Hole())), "infill.segments[1].hole.length", "(0)"),
    (changed(sampling__max_new_tokens=0), "sampling.max_new_tokens", "(0)"),
    (changed(sampling__max_new_tokens=100000), "sampling.max_new_tokens", "(100000)"),
    (changed(sampling__max_new_tokens=125), "sampling.max_new_tokens", "128 - 4 prompt tokens"),
    (changed(sampling__temperature=-0.5), "sampling.temperature", "(-0.5)"),
    (changed(sampling__temperature=2.5), "sampling.temperature", "(2.5)"),
    (changed(sampling__temperature=float("nan")), "sampling.temperature", "(nan)"),
    (changed(sampling__top_p=0.0), "sampling.top_p", "(0)"),
    (changed(sampling__top_p=1.5), "sampling.top_p", "(1.5)"),
    (changed(sampling__top_k=98), "sampling.top_k", "(98)"),
    (changed(sampling__n=0), "sampling.n", "(0)"),
    (changed(sampling__n=9), "sampling.n", "(9)"),
    (changed(sampling__stop__strings=["x"]), "sampling.stop.strings", "no tokenizer"),
    (changed(sampling__stop__token_ids=[97]), "sampling.stop.token_ids[0]", "(97)"),
    (changed(sampling__stop__token_ids=[1] * 17), "sampling.stop.token_ids", "17"),
    (changed(diffusion__block_length=0), "diffusion.block_length", "(0)"),
    (changed(diffusion__block_length=129), "diffusion.block_length", "(129)"),
    (changed(diffusion__steps=0), "diffusion.steps", "(0)"),
    (changed(diffusion__steps=17), "diffusion.steps", "(17)"),
    (changed(diffusion__cfg_scale=16.5), "diffusion.cfg_scale", "(16.5)"),
    (changed(diffusion__cfg_scale=-1.0), "diffusion.cfg_scale", "(-1)"),
    (changed(diffusion__cache=v1.CACHE_POLICY_SETTLED), "diffusion.cache", "none, prefix, dual"),
    (changed(diffusion__cache=77), "diffusion.cache", "(77) is unknown"),
    (changed(diffusion__cache_refresh_steps=3), "diffusion.cache_refresh_steps", "(3)"),
    (
        changed(diffusion__fixed_schedule__remasking=7),
        "diffusion.fixed_schedule.remasking",
        "(7)",
    ),
    (
        changed(diffusion__confidence_threshold=THRESHOLD(threshold=0.0)),
        "diffusion.confidence_threshold.threshold",
        "(0)",
    ),
    (
        changed(diffusion__confidence_threshold=THRESHOLD(), diffusion__steps=4),
        "diffusion.steps",
        "(4)",
    ),
    (changed(sampling__top_logprobs=21), "sampling.top_logprobs", "(21)"),
    (
        changed(diffusion__adaptive_parallel=v1.AdaptiveParallel()),
        "diffusion.adaptive_parallel",
        "no auxiliary model (--aux-model)",
    ),
    (
        changed(diffusion__remdm=v1.Remdm(mode=v1.REMDM_MODE_CONF, eta=0)),
        "diffusion.remdm.eta",
        "mode conf",
    ),
    (changed(diffusion__wino=v1.Wino(), diffusion__steps=4), "diffusion.steps", "(4)"),
    *beyond_its_range(),
    (changed(request_id="x" * 129), "request_id", "129"),
    (changed(request_id="line\nbreak"), "request_id", "printable ASCII"),
]


@pytest.mark.parametrize(("asked", "field", "words"), BAD, ids=[f"{b[1]}-{b[2]}" for b in BAD])
def test_a_wrong_field_is_refused_by_name_and_value(
    server: RunningServer, asked: v1.GenerationSpec, field: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(asked))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "INVALID_FIELD"
    found = violations(refused.value)
    assert list(found) == [f"spec.{field}"]
    assert words in found[f"spec.{field}"]
    assert words in refused.value.details()
    assert "x-request-id" in dict(refused.value.trailing_metadata())


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"granularity": 9}, "granularity", "(9)"),
        ({"stride": 2}, "stride", "(2) needs"),
        ({"granularity": v1.GRANULARITY_COMMITTED, "stride": 1}, "stride", "(1) needs"),
        ({"granularity": v1.GRANULARITY_STEPS, "stride": 0}, "stride", "(0)"),
    ],
)
def test_a_stream_option_without_sense_is_refused(
    server: RunningServer, options: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(server.generation.StreamGenerate(stream(spec(), **options)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in violations(refused.value)[f"options.{field}"]


def test_all_violations_are_told_together(server: RunningServer) -> None:
    asked = changed(sampling__temperature=3.0, sampling__n=0, diffusion__block_length=0)
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(asked))
    assert set(violations(refused.value)) == {
        "spec.sampling.temperature",
        "spec.sampling.n",
        "spec.diffusion.block_length",
    }


def test_a_thousand_violations_fit_in_the_trailers(server: RunningServer) -> None:
    nameless = [v1.ChatMessage(role=77, content="\u20ac" * 50)] * 1000  # type: ignore[arg-type]
    asked = v1.GenerationSpec(chat=v1.ChatInput(messages=nameless))
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(asked))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "spec.chat.messages[0].role" in violations(refused.value)


def test_a_field_of_a_newer_contract_is_refused_by_number(server: RunningServer) -> None:
    newer = v1.GenerateRequest(spec=spec())
    newer.spec.sampling.MergeFromString(b"\xa0\x06\x01")  # field 100 = 1
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(newer)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "field 100" in violations(refused.value)["spec.sampling.100"]


def test_another_model_is_not_found(server: RunningServer) -> None:
    asked = spec()
    asked.model = "gpt\nlarge"
    for call, request in [
        (server.generation.Generate, generate(asked)),
        (server.model.GetModelInfo, v1.GetModelInfoRequest(model=asked.model)),
        (server.model.CountTokens, v1.CountTokensRequest(model=asked.model, text="x")),
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason(refused.value) == "MODEL_NOT_FOUND"
        assert "served: tiny, tiny-alias" in refused.value.details()


def test_count_tokens_refuses_with_its_own_field_paths(server: RunningServer) -> None:
    for request, field in [
        (v1.CountTokensRequest(), "input"),
        (v1.CountTokensRequest(text="hello"), "text"),
        (v1.CountTokensRequest(token_ids=v1.TokenIds(ids=[97])), "token_ids.ids[0]"),
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            server.model.CountTokens(request)
        assert list(violations(refused.value)) == [field]


def test_a_request_id_in_the_metadata_is_held_to_the_same_rule(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(spec()), metadata=(("x-request-id", "x" * 129),))
    assert list(violations(refused.value)) == ["x-request-id"]


def test_while_others_are_refused_a_neighbours_stream_is_unchanged(server: RunningServer) -> None:
    def run() -> list[v1.StreamGenerateResponse]:
        asked = stream(long_spec(temperature=1.0, seed=3), v1.GRANULARITY_STEPS)
        return list(server.generation.StreamGenerate(asked))[1:-1]

    alone = run()
    refused = 0
    in_company: list[v1.StreamGenerateResponse] = []
    bad = [asked for asked, _, _ in BAD]
    for event in server.generation.StreamGenerate(
        stream(long_spec(temperature=1.0, seed=3), v1.GRANULARITY_STEPS)
    ):
        in_company.append(event)
        if event.HasField("step_update") and bad:  # it runs, and is not at its end
            with pytest.raises(grpc.RpcError):
                server.generation.Generate(generate(bad.pop()))
            refused += 1
    assert in_company[1:-1] == alone
    assert refused == len(BAD)
