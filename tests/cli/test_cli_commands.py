"""The commands that call a server, and what they say when something is wrong."""

from __future__ import annotations

import argparse
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdiff_grpc.cli.flags import add_call_flags, add_sampling_flags, read_ask
from vdiff_grpc.cli.main import main
from vdiff_grpc.client import Client, SpecFields, template

PROMPT = "Once upon a time"


@pytest.fixture
def call(
    demo_address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[object]:
    """Runs one command against the server: (exit code, output, errors)."""
    monkeypatch.setenv("VDIFF_ADDRESS", demo_address)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run  # type: ignore[return-value]


def test_generate_prints_the_text(call, demo_address: str) -> None:
    code, out, err = call("generate", PROMPT, "--max-new-tokens", "12", "--seed", "1")
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=12, seed=1)
    assert (code, out, err) == (0, reply.outputs[0].text + "\n", "")


def test_generate_reads_the_prompt_from_standard_input(call, monkeypatch) -> None:
    sampling = ("--max-new-tokens", "8", "--seed", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert call("generate", "-", *sampling) == call("generate", PROMPT, *sampling)


def test_generate_passes_every_parameter_on(call) -> None:
    code, out, _ = call(
        *("generate", PROMPT, "--json", "--max-new-tokens", "12", "--temperature", "0.5"),
        *("--top-p", "0.9", "--top-k", "5", "--seed", "18446744073709551600", "--n", "2"),
        *("--stop", "zzz", "--stop", "yyy", "--stop-token-id", "9", "--ignore-eos"),
        *("--block-length", "4", "--steps", "6", "--cfg-scale", "0.5", "--remasking", "random"),
        *("--request-id", "mine", "--timeout", "60", "--top-logprobs", "3"),
        *("--latency-budget", "60", "--return-trajectory"),
    )
    assert code == 0
    reply = json.loads(out)
    assert reply["request_id"] == "mine"
    assert len(reply["outputs"]) == 2
    assert reply["outputs"][0]["index"] == 0
    assert all(output["trajectory"] for output in reply["outputs"])
    sampling, diffusion = reply["resolved"]["sampling"], reply["resolved"]["diffusion"]
    assert sampling == {
        "max_new_tokens": 12,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": "18446744073709551600",
        "n": 2,
        "stop": {"strings": ["zzz", "yyy"], "token_ids": [9]},
        "ignore_eos": True,
        "top_logprobs": 3,
    }
    tops = reply["outputs"][0]["tokens"]["top_tokens"]
    assert {len(top["ids"]) for top in tops} == {3}
    assert diffusion["block_length"] == 4
    assert diffusion["steps"] == 6
    assert diffusion["cfg_scale"] == 0.5
    assert diffusion["fixed_schedule"] == {"remasking": "REMASKING_ORDER_RANDOM"}


def test_generate_takes_chats_suffixes_and_thresholds(call) -> None:
    code, out, _ = call("generate", "--chat", "Hello", "--json", "--max-new-tokens", "8")
    assert code == 0
    code, out, _ = call(
        *("generate", "The cat sat", "--suffix", " the house.", "--json"),
        *("--max-new-tokens", "4", "--threshold", "0.25"),
    )
    assert code == 0
    reply = json.loads(out)
    assert len(reply["outputs"][0]["hole_texts"]) == 1
    assert reply["resolved"]["diffusion"]["confidence_threshold"] == {"threshold": 0.25}


def test_any_strategy_can_be_named_with_its_parameters(call) -> None:
    def resolved(strategy: str) -> dict[str, object]:
        code, out, _ = call(
            *("generate", PROMPT, "--json", "--max-new-tokens", "4", "--strategy", strategy)
        )
        assert code == 0
        diffusion: dict[str, object] = json.loads(out)["resolved"]["diffusion"]
        return diffusion

    assert resolved("klass,threshold=0.5,history=3")["klass"] == {
        "threshold": 0.5,
        "kl_threshold": 0.01,
        "history": 3,
    }
    assert resolved("remdm,mode=conf")["remdm"] == {"mode": "REMDM_MODE_CONF"}
    assert resolved("left_to_right")["left_to_right"] == {}


def test_a_strategys_parameter_out_of_its_range_is_the_servers_refusal(call) -> None:
    code, _, err = call("generate", PROMPT, "--strategy", "klass,threshold=2")
    assert code == 1
    assert "threshold (2) is not in [0, 1]" in err


def test_several_answers_are_told_apart(call) -> None:
    code, out, _ = call("generate", PROMPT, "--n", "2", "--max-new-tokens", "4")
    assert code == 0
    assert "--- answer 1 ---\n" in out
    assert "--- answer 2 ---\n" in out


def test_watch_writes_plain_lines_into_a_pipe(call, demo_address: str) -> None:
    code, out, err = call("watch", PROMPT, "--max-new-tokens", "8", "--steps", "8", "--ignore-eos")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("step ")]) == 8
    assert lines[0].startswith("step 1  block 1  filled 1/8  passes 1  " + PROMPT)
    assert lines[0].count("░") == 7
    assert "filled 8/8" in lines[7]
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=8, seed=1, ignore_eos=True)
    assert PROMPT + reply.outputs[0].text in out
    assert "\x1b" not in out
    assert "8 tokens · 8 forward passes · 1.00 tokens per forward" in out


CHOSEN = "Tom had a{{1..4}} ball. He went home."
HELD = "Tom had a{{1}} ball. He had{{2:choice= red| green}} toys."


def test_every_field_of_a_request_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_call_flags(parser)
    add_sampling_flags(parser)
    valued = (
        *("model", "request-id", "max-new-tokens", "temperature", "top-p", "top-k", "seed", "n"),
        *("best-of", "stop", "stop-token-id", "block-length", "steps", "cfg-scale", "priority"),
        *("latency-budget", "cache-refresh-steps", "suffix-window", "top-logprobs", "threshold"),
        "regex",
    )
    words = ["--ignore-eos", "--partial-on-deadline", "--cache=none"]
    words += ["--hole-lengths=native"]
    words += [f"--{name}=1" for name in valued]
    said = set()
    for shape in (["x", "--suffix", "b"], ["x", "--chat"], ["{{2}}", "--infill"]):
        fields = read_ask(parser.parse_args([*shape, *words])).fields
        said |= {name for name, value in fields.items() if value not in (None, "")}
    # Token ids are no words, and how a canvas filled in is asked for with --json.
    assert said == SpecFields.__annotations__.keys() - {"token_ids", "return_trajectory"}


def test_a_schema_is_a_file_standard_input_or_the_flag_itself(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = '{"type": "object", "properties": {"age": {"const": 7}}, "required": ["age"]}'
    (tmp_path / "schema.json").write_text(schema)
    for where in (schema, str(tmp_path / "schema.json"), "-"):
        monkeypatch.setattr("sys.stdin", io.StringIO(schema))
        code, out, _ = call(
            "generate", "Tom: ", "--json-schema", where, "--temperature", "1", "--seed", "3"
        )
        assert code == 0
        assert json.loads(out) == {"age": 7}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a {{two}}", "--infill"], "{{two}} is not a hole, which is {{4}}, {{2..9}} or"),
        (["a", "--infill"], "the template has no hole"),
        (
            ["a", "--json-schema", "/nowhere/a.json"],
            "--json-schema /nowhere/a.json: cannot be read",
        ),
        (["-", "--json-schema", "-"], "cannot both be standard input"),
        (
            [
                "a",
                "--json-schema",
                '{"type": "object", "properties": {"b": {"$dynamicRef": "#x"}}}',
            ],
            "$dynamicRef is not supported at constraint.json_schema.properties.b.$dynamicRef [INVALID_FIELD]",
        ),
        (["{{2:regex=[}}", "--infill"], "at infill.segments[0].hole.constraint.regex"),
        (["a", "--latency-budget", "0"], "latency_budget"),
        (["a", "--best-of", "9"], "best_of (9) exceeds the server's limit"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_with_its_place(
    call, arguments: list[str], words: str
) -> None:
    code, out, err = call("generate", *arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


def test_watch_shows_holes_among_frozen_text_with_the_lengths_that_were_chosen(
    call, demo_address: str
) -> None:
    for text, holes, given in (
        (CHOSEN, "2 of 1..4", r"Tom had a\[.*\] ball\. He went home\."),
        (HELD, "1, 2 choice red | green", r"Tom had a\[.*\] ball\. He had\[.*\] toys\."),
    ):
        code, out, err = call("watch", "--infill", text, "--seed", "3")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"holes: {holes}"
        steps = [line for line in lines if line.startswith("step ")]
        assert steps
        assert all(re.fullmatch(f".*  {given}", line) for line in steps)
        with Client(demo_address) as client:
            output = client.generate(infill=template(text), seed=3).outputs[0]
        assert re.sub(r"\{\{.*?\}\}", "{}", text).format(*output.hole_texts) in lines


def test_watch_says_what_holds_and_what_was_hurried(call) -> None:
    code, out, _ = call(
        *("watch", PROMPT, "--max-new-tokens", "16", "--block-length", "8", "--steps", "16"),
        *("--ignore-eos", "--latency-budget", "0.001", "--regex", "[a-z .]+"),
    )
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == ["constraint: regex [a-z .]+", "latency budget: 0.001 s"]
    assert ["hurried" in line for line in lines[2:4]] == [True, True]
    assert re.search(r" [\d.]+ s of 0.001 s, [\d.]+ s late\nhurried at 2 steps · ", out)


def test_watch_shows_all_candidates_with_their_scores(call, demo_address: str) -> None:
    sampled = ("--max-new-tokens", "8", "--temperature", "1", "--seed", "4", "--best-of", "3")
    code, out, err = call("watch", PROMPT, *sampled, "--request-id", "judged")
    assert (code, err) == (0, "")
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=4, n=3, best_of=3)
    assert all(f"answer {i}  step 1  " in out for i in (1, 2, 3))
    for output in reply.outputs:
        title = f"--- answer {output.index + 1} · score {output.end.score:.3f} ---"
        assert f"{title}\n{PROMPT}{output.text}\n" in out
        filled = [
            line for line in out.splitlines() if line.startswith(f"answer {output.index + 1}")
        ]
        assert filled[-1].endswith(f"{PROMPT}{output.text}")
    assert len({output.text for output in reply.outputs}) > 1
    code, out, _ = call("generate", PROMPT, *sampled)
    assert out == reply.outputs[0].text + "\n"
    code, out, _ = call("watch", PROMPT, *sampled, "--n", "1")
    assert "answer" not in out
    assert f"score {reply.outputs[0].end.score:.3f}\n" in out


def test_watch_shows_a_gap_between_prompt_and_suffix(call) -> None:
    code, out, _ = call(
        "watch", "The cat sat", "--suffix", " the house.", "--max-new-tokens", "4", "--n", "2"
    )
    assert code == 0
    steps = [line for line in out.splitlines() if line.startswith("answer ")]
    assert steps
    assert all("The cat sat" in line and line.endswith(" the house.") for line in steps)


@pytest.mark.parametrize("command", ["generate", "watch"])
def test_a_refused_parameter_is_one_line(call, command: str) -> None:
    code, out, err = call(command, PROMPT, "--temperature", "9")
    assert (code, out) == (1, "")
    assert err.startswith("vdiff-grpc: ")
    assert "temperature" in err
    assert "9" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "watch"])
def test_no_server_is_one_line_that_says_where_and_what_to_do(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert main([command, PROMPT, "--address", address]) == 1
    err = capsys.readouterr().err
    assert f"no server at {address}" in err
    assert "vdiff-grpc serve" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", PROMPT, "--seed", "-1"], "-1 is not from 0 to"),
        (["generate", PROMPT, "--n", "two"], "invalid whole number value: 'two'"),
        (["generate", PROMPT, "--chat", "--suffix", "x"], "not allowed with"),
        (["generate", PROMPT, "--chat", "--infill"], "not allowed with"),
        (["generate", PROMPT, "--regex", "x", "--choice", "y"], "not allowed with"),
        (["generate", PROMPT, "--threshold", "1", "--remasking", "random"], "not allowed with"),
        (["generate", PROMPT, "--strategy", "wino", "--threshold", "1"], "not allowed with"),
        (["generate", PROMPT, "--strategy", "greedy"], "strategy (greedy) must be one of"),
        (["generate", PROMPT, "--strategy", "wino,x=1"], "x is no parameter of wino"),
        (["generate", PROMPT, "--strategy", "wino,0.5"], "'0.5' is not PARAMETER=VALUE"),
        (["generate", PROMPT, "--strategy", "klass,history=two"], "history (two)"),
        (["generate"], "prompt"),
        (["watch", PROMPT, "--top", "1"], "--top"),
        (["run", "--port", "many"], "'many' is not allowed"),
        (["serve", "--max-n", "0"], "'0' is not allowed"),
        ([], "COMMAND"),
    ],
)
def test_wrong_flags_exit_with_2_and_a_reason(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:", "127.0.0.1:70000", ":1", "a:b:c"])
def test_run_refuses_an_address_that_it_cannot_read(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--address", address]) == 1
    assert address in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--address", "--gateway-address"])
def test_run_says_which_address_is_taken(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    addresses = {"--address": "127.0.0.1:0", "--gateway-address": "127.0.0.1:0"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        addresses[flag] = f"127.0.0.1:{other.getsockname()[1]}"
        assert main(["run", *(word for pair in addresses.items() for word in pair)]) == 1
    err = capsys.readouterr().err
    assert f"cannot listen on {addresses[flag]}: Address already in use" in err


def test_run_refuses_one_address_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    assert main(["run", "--address", address, "--gateway-address", address]) == 1
    assert f"cannot both listen on {address}" in capsys.readouterr().err


def test_run_takes_the_gateway_s_address_from_its_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("VDIFF_GATEWAY_PORT", str(port))
        assert main(["run", "--address", "127.0.0.1:0"]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_watch_without_rich_says_what_to_install(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = call("watch", PROMPT, "--max-new-tokens", "4")
    assert (code, out) == (1, "")
    assert "vdiff-grpc[server]" in err
    assert call("watch", PROMPT, "--max-new-tokens", "4", "--plain")[0] == 0


@pytest.mark.parametrize("module", ["vdiff_grpc.cli", "vdiff_grpc.client", "vdiff_grpc.cli.child"])
def test_importing_loads_neither_a_model_s_nor_a_terminal_s_libraries(module: str) -> None:
    heavy = {"torch", "transformers", "rich", "starlette"}
    check = f"import sys, {module}; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_help_and_the_version_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--help"], "watch"), (["run", "--help"], "--gateway-address")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("vdiff-grpc 0.")
