"""Every strategy of the contract has a function, and can be asked for by its name."""

from __future__ import annotations

import inspect

import pytest

from vdiff_grpc import client, v1
from vdiff_grpc.client import STRATEGIES, build_spec, strategy

CASES = {
    case.name: case.message_type
    for case in v1.DiffusionParams.DESCRIPTOR.oneofs_by_name["strategy"].fields
}


def test_every_case_has_a_function_with_its_parameters() -> None:
    assert set(STRATEGIES) == set(CASES)
    for name, message in CASES.items():
        function = getattr(client, name)
        assert name in client.__all__
        assert set(inspect.signature(function).parameters) == set(message.fields_by_name), name
        assert all(p.default is None for p in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_out_is_not_sent_and_what_is_said_is(name: str) -> None:
    function = getattr(client, name)
    assert function() == strategy(name) == getattr(v1, CASES[name].name)()
    said: dict[str, float | str] = {}
    for field in CASES[name].fields:
        if field.enum_type is None:
            said[field.name] = 1
            continue
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        said[field.name] = field.enum_type.values[-1].name.removeprefix(prefix).lower()
    message = function(**said)
    assert message == strategy(name, **said)
    assert {field.name for field, _ in message.ListFields()} == set(said)


@pytest.mark.parametrize("name", CASES)
def test_a_spec_holds_the_strategy_in_its_case(name: str) -> None:
    spec = build_spec(text="a", strategy=strategy(name))
    assert spec.diffusion.WhichOneof("strategy") == name
    assert v1.GenerationSpec.FromString(spec.SerializeToString()) == spec


def test_an_explicit_zero_is_sent() -> None:
    message = client.remdm("cap", eta=0.0)
    assert message.HasField("eta")
    assert not message.HasField("t_on")


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("greedy", {}, r"strategy \(greedy\) must be one of fixed_schedule, "),
        ("klass", {"treshold": 1}, "treshold is no parameter of klass, which has threshold, kl_"),
        ("left_to_right", {"x": 1}, "which has none"),
        ("remdm", {"mode": "fast"}, r"mode \(fast\) must be one of cap, rescale, conf, loop"),
        ("klass", {"history": 2.5}, r"history \(2.5\) is not a number that klass can take"),
        ("klass", {"history": -1}, r"history \(-1\)"),
        ("wino", {"threshold": "high"}, r"threshold \(high\)"),
    ],
)
def test_what_a_strategy_does_not_have_is_refused_by_name(
    name: str, parameters: dict[str, float | str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        strategy(name, **parameters)


def test_what_is_no_strategy_is_refused() -> None:
    with pytest.raises(TypeError, match="GenerationSpec is no strategy"):
        build_spec(text="a", strategy=v1.GenerationSpec())  # type: ignore[arg-type]
