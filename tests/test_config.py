from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from vdiff_grpc import config
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine.types import EngineConfig


def read(*arguments: str, **environ: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.from_flags(parser.parse_args(arguments), environ)


def test_without_flags_the_embedded_model_is_served_on_loopback() -> None:
    options = read()
    assert options == ServerConfig()
    assert (options.host, options.port) == ("127.0.0.1", 50051)
    assert options.served_names == ("vdiff-demo",)
    assert options.model_path.endswith("vdiff_grpc/assets/demo")


def test_everything_the_engine_can_be_told_is_an_option() -> None:
    options = {option.name for option in fields(ServerConfig)}
    engines = {option.name for option in fields(EngineConfig)}
    assert engines - options == {"model_path", "aux_model_path", "served_names"}
    told = {"attention": "flex", "batch_invariant": True, "threads": 3, "max_n": 2}
    changed = ServerConfig(**told).engine_config()
    assert {name: getattr(changed, name) for name in told} == told


def test_every_flag_is_a_variable_too() -> None:
    values = {"str": "x", "int": "7", "float": "7", "bool": "off", "tuple": "a,b"}
    special = {
        "device": "cuda:1",
        "dtype": "float16",
        "attention": "varlen",
        "quantization": "torchao-int8",
        "overload": "refuse",
        "log_format": "json",
        "log_level": "debug",
    }
    for option in fields(ServerConfig):
        text = special.get(option.name, values[type(option.default).__name__])
        if option.name == "max_message_bytes":
            text = "4096"
        if option.default is False:
            text = "on"
        by_flag = read(f"--{option.name.replace('_', '-')}", text)
        by_variable = read(**{f"VDIFF_{option.name.upper()}": text})
        assert by_flag == by_variable != ServerConfig(), option.name


def test_a_flag_wins_over_its_variable_and_an_empty_variable_is_none() -> None:
    assert read("--port", "1", VDIFF_PORT="2").port == 1
    assert read(VDIFF_PORT="2").port == 2
    assert read(VDIFF_PORT="").port == 50051


def test_a_wrong_value_is_named_with_its_source_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--port", "70000", "--device", "tpu", "--grace-s", "nan", VDIFF_MAX_N="none")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --port: '70000' is not allowed; allowed: a whole number from 0 to 65535",
        "error: --device: 'tpu' is not allowed; allowed: one of auto, cuda, cuda:N, mps, cpu",
        "error: VDIFF_MAX_N: 'none' is not allowed; allowed: a whole number, at least 1",
        "error: --grace-s: 'nan' is not allowed; allowed: a number, at least 0",
    ]


def test_the_folder_names_the_model_unless_names_are_given() -> None:
    assert read("--model", "/models/llada-8b/").served_names == ("llada-8b",)
    assert read("--served-model-name", "one,two").served_names == ("one", "two")


def test_the_embedded_model_has_its_twin_beside_it_unless_told_otherwise() -> None:
    twin = read().aux_model_path
    assert twin.endswith("vdiff_grpc/assets/demo/twin")
    assert read("--aux-model", "none").aux_model_path == ""
    assert read("--model", "/models/llada-8b").aux_model_path == ""
    assert read("--model", "/models/llada-8b", "--aux-model", "demo-twin").aux_model_path == twin
    options = read(VDIFF_AUX_MODEL="/models/small")
    assert options.engine_config().aux_model_path == "/models/small"


def test_the_engine_gets_every_limit() -> None:
    changes = {
        option.name: option.default + 1
        for option in fields(ServerConfig)
        if option.name.startswith(("max_", "default_", "threads"))
    }
    options = ServerConfig(**changes)
    engine = options.engine_config()
    for option in fields(EngineConfig):
        if option.name in changes:
            assert getattr(engine, option.name) == changes[option.name]
    assert engine.served_names == options.served_names


def test_help_says_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "(default 50051, VDIFF_PORT)" in text
