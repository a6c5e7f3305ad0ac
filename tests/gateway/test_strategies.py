"""`strategy`: every one of the contract's, by name and with its parameters."""

from __future__ import annotations

import enum
from typing import Any

import httpx
import pytest

from gateway import convert, strategies
from tests.conftest import RunningServer
from tests.gateway.test_docs import validator
from tests.gateway.test_refusals import TEXT, error_of
from vdiff_grpc import v1
from vdiff_grpc.engine.strategies import STRATEGIES

PARAMETERS = [
    (name, parameter, given)
    for name, kind in STRATEGIES.items()
    for parameter, given in kind.ranges().items()
]
IDS = [f"{name}.{parameter}" for name, parameter, _ in PARAMETERS]


def diffusion_of(**strategy: Any) -> v1.DiffusionParams:
    body = httpx.Request("POST", "http://x", json=TEXT | {"strategy": strategy}).read()
    return convert.parse_completion(body).specs[0].diffusion


def test_the_gateways_ranges_are_the_servers() -> None:
    assert set(strategies.NAMES) == set(strategies.ABOUT) == set(STRATEGIES)
    for name, kind in STRATEGIES.items():
        about, ranges = strategies.ABOUT[name]
        assert about.endswith(".")
        assert set(ranges) == set(kind.ranges()), name
        for parameter, given in kind.ranges().items():
            ours = ranges[parameter]
            if isinstance(given.default, enum.Enum):
                assert ours.default == given.default.value
                continue
            assert (ours.default, ours.low, ours.high, ours.open_low) == (
                given.default,
                given.low,
                given.high,
                given.open_low,
            ), f"{name}.{parameter}"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_name_alone_leaves_every_parameter_to_the_server(name: str) -> None:
    diffusion = diffusion_of(type=name)
    assert diffusion.WhichOneof("strategy") == name
    assert not getattr(diffusion, name).ListFields()
    silent = dict.fromkeys(STRATEGIES[name].ranges())
    assert diffusion_of(type=name, **silent) == diffusion


@pytest.mark.parametrize(("name", "parameter", "given"), PARAMETERS, ids=IDS)
def test_every_parameter_reaches_its_field(name: str, parameter: str, given: Any) -> None:
    if not isinstance(given.default, enum.Enum):
        message = getattr(diffusion_of(type=name, **{parameter: given.high}), name)
        assert getattr(message, parameter) == given.high
        assert message.HasField(parameter)
        return
    numbers = set()
    for choice in type(given.default):
        message = getattr(diffusion_of(type=name, **{parameter: choice.value}), name)
        numbers.add(getattr(message, parameter))
    assert len(numbers - {0}) == len(type(given.default))


@pytest.mark.parametrize(("name", "parameter", "given"), PARAMETERS, ids=IDS)
def test_every_parameter_out_of_its_range_is_refused_by_name(
    http: httpx.Client, name: str, parameter: str, given: Any
) -> None:
    for value in ("x", -1, 1e9):
        strategy = {"type": name, parameter: value}
        reply = http.post("/v1/completions", json=TEXT | {"strategy": strategy})
        error = error_of(reply)
        assert (reply.status_code, error["param"]) == (400, f"strategy.{parameter}"), reply.text
        assert f"strategy.{parameter} (" in error["message"]


@pytest.mark.parametrize(
    ("strategy", "param", "words"),
    [
        ({"type": "uniform_noise"}, "strategy", "is not among this model's"),
        ({"type": "klass", "x": 1}, "strategy.x", "is not a field of strategy"),
        ({"type": "local_leap", "threshold": 0.5, "relaxed_threshold": 0.6},
         "strategy.relaxed_threshold", "must be at most threshold (0.5)"),
        ({"type": "remdm", "mode": "conf", "eta": 0.1}, "strategy.eta", "mode conf"),
        ({"type": "remdm", "mode": "fast"}, "strategy.mode", "cap, rescale, conf, loop"),
        ({"type": "dream_schedule", "order": "origin", "order_temperature": 1},
         "strategy.order_temperature", "order origin"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(
    http: httpx.Client, strategy: dict[str, Any], param: str, words: str
) -> None:
    reply = http.post("/v1/chat/completions", json={
        "messages": [{"role": "user", "content": "Hello"}], "strategy": strategy
    })  # fmt: skip
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert words in error_of(reply)["message"]


def test_every_strategy_of_the_model_answers_as_over_grpc(
    http: httpx.Client, demo: RunningServer
) -> None:
    fields = TEXT | {"max_tokens": 12, "seed": 1, "ignore_eos": True}
    info = demo.model.GetModelInfo(v1.GetModelInfoRequest())
    document = validator(http.get("/openapi.json").json(), "CompletionRequest")
    for name in info.strategies:
        body = fields | {"strategy": {"type": name}}
        document.validate(body)
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 200, f"{name}: {reply.text}"
        spec = v1.GenerationSpec(
            text=TEXT["prompt"],
            sampling=v1.SamplingParams(max_new_tokens=12, seed=1, ignore_eos=True),
        )
        getattr(spec.diffusion, name).SetInParent()
        direct = demo.generation.Generate(v1.GenerateRequest(spec=spec))
        assert reply.json()["choices"][0]["text"] == direct.outputs[0].text, name


def test_what_is_taken_back_is_shown_and_never_in_the_text(http: httpx.Client) -> None:
    strategy = {"type": "wino", "threshold": 0.05, "threshold_back": 0.6}
    fields = TEXT | {"max_tokens": 32, "seed": 1, "strategy": strategy, "ignore_eos": True}
    whole = http.post("/v1/completions", json=fields).json()["choices"][0]["text"]
    streamed = http.post("/v1/completions", json=fields | {"stream": True, "diffusing": True})
    assert '"kind":"remask"' in streamed.text
    chunks = [
        httpx.Response(200, content=line[6:]).json() for line in streamed.text.split("\n\n")[:-2]
    ]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
