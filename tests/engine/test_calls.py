"""Calls of tools by a model that knows nothing: whatever is valid, the algorithm alone has made so."""

from __future__ import annotations

import json
import random
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from tests.engine.test_constraints import ABLE, random_params, random_schema
from tests.engine.told import PLAIN, TEMPLATE, told_checkpoint
from tests.engine.tools import finished, run_all, same_in_company, tiny_engine
from vdiff_grpc.engine.chat import ChatTemplate
from vdiff_grpc.engine.constraint_checks import compiler_for, must_build
from vdiff_grpc.engine.constraints.kinds import JsonSchemaConstraint, RegexConstraint
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import FinishReason, Output
from vdiff_grpc.engine.prompt_types import (
    ChatMessage,
    ChatPrompt,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from vdiff_grpc.engine.strategies import FreeDave
from vdiff_grpc.engine.types import Request, RequestParams
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import InvalidRequestError

ASK = (ChatMessage("user", "a"),)
REQUIRED = ToolChoice(ToolMode.REQUIRED)
ONE = ToolChoice(ToolMode.REQUIRED, parallel=False)
AGE = Tool("age", parameters='{"properties":{"id":{"type":"integer"}},"required":["id"]}')
NOTHING = Tool("no")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(told_checkpoint(tmp_path_factory.mktemp("tagged")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(told_checkpoint(tmp_path_factory.mktemp("plain"), PLAIN))


def calls_of(text: str, *, tags: bool) -> tuple[str, list[tuple[str, Any]]]:
    """The text before the calls, and the calls; whatever is no call fails."""
    if not tags:
        return "", [_call(line) for line in text.split("\n")]
    said, *rest = re.split("<tool_call>\n", text)
    calls = []
    for number, part in enumerate(rest, 1):
        ending = "\n</tool_call>" + ("\n" if number < len(rest) else "")
        assert part.endswith(ending)
        calls.append(_call(part.removesuffix(ending)))
    return said, calls


def _call(line: str) -> tuple[str, Any]:
    call = json.loads(line)
    assert list(call) == ["name", "arguments"]
    return call["name"], call["arguments"]


def check(output: Output, prompt: ChatPrompt, *, tags: bool) -> int:
    """Returns how many calls it has."""
    choice = prompt.choice or ToolChoice()
    said, calls = calls_of(output.text, tags=tags)
    assert "<tool_call>" not in said
    schemas = {tool.name: json.loads(tool.parameters or "{}") for tool in prompt.tools}
    for name, arguments in calls:
        assert isinstance(arguments, dict)
        assert choice.name in ("", name)
        jsonschema.validate(arguments, schemas[name])
    if choice.mode is ToolMode.REQUIRED:
        assert calls
        assert not said
    if choice.name or not choice.parallel:
        assert len(calls) <= 1
    assert output.finish_reason is FinishReason.STOP or not calls
    return len(calls)


def random_prompt(rng: random.Random, *, tags: bool) -> ChatPrompt:
    tools = []
    for name in rng.sample(["age", "no", "a-b", "id_2"], rng.randint(1, 3)):
        keys = rng.sample(["name", "age", "id", "ab"], rng.randint(0, 2))
        schema = {
            "type": "object",
            "properties": {key: random_schema(rng, 1) for key in keys},
            "required": [key for key in keys if rng.random() < 0.7],
        }
        tools.append(
            Tool(name, parameters=json.dumps(schema) if keys or rng.random() < 0.5 else "")
        )
    modes = [ToolMode.REQUIRED, ToolMode.AUTO] if tags else [ToolMode.REQUIRED]
    mode, name = rng.choice(modes), rng.choice(["", "", tools[0].name])
    choice = ToolChoice(ToolMode.REQUIRED if name else mode, name, rng.random() < 0.5)
    return ChatPrompt(ASK, tuple(tools), choice)


def check_random(engine: Engine, seed: int, count: int, *, tags: bool) -> tuple[int, int]:
    """Random tools in company. Returns how many answers there were, and how many calls."""
    rng = random.Random(seed)
    asked: dict[int, ChatPrompt] = {}
    num_answers = num_calls = 0
    for key in range(count):
        prompt = random_prompt(rng, tags=tags)
        params = random_params(rng, ABLE[key % len(ABLE)])
        params = replace(params, max_new_tokens=rng.choice([60, 80]), steps=None)
        try:
            engine.add(key, engine.resolve(Request(prompt, params)))
        except InvalidRequestError as error:
            if "tokens" in str(error):
                continue  # it does not fit
            raise
        asked[key] = prompt
        if len(asked) == 12 or key == count - 1:
            for number, events in run_all(engine).items():
                for output in finished(events).outputs:
                    num_calls += check(output, asked[number], tags=tags)
                    num_answers += 1
            asked.clear()
    return num_answers, num_calls


def test_every_call_is_one_of_the_tools_with_arguments_that_its_schema_allows(
    tagged: Engine, plain: Engine
) -> None:
    answers, calls = check_random(tagged, 1, 15, tags=True)
    assert (answers > 8, calls > 6) == (True, True), (answers, calls)
    answers, calls = check_random(plain, 2, 10, tags=False)
    assert (answers > 5, calls >= answers) == (True, True), (answers, calls)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tags", [True, False])
def test_thousands_of_calls_are_valid(tagged: Engine, plain: Engine, tags: bool) -> None:
    assert check_random(tagged if tags else plain, 3, 1500, tags=tags)[1] > 700


def run(engine: Engine, request: Request) -> Output:
    """Alone; what has been built is kept."""
    engine.add(1, engine.resolve(request))
    return finished(run_all(engine)[1]).outputs[0]


def ask(
    engine: Engine, choice: ToolChoice | None, *tools: Tool, constraint: Any = None, **params: Any
) -> str:
    request = Request(
        ChatPrompt(ASK, tools, choice), RequestParams(**params), constraint=constraint
    )
    return run(engine, request).text


CALL_NOTHING = '<tool_call>\n{"name": "no", "arguments": {}}\n</tool_call>'
LONG: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.0}


def test_one_call_is_one_and_several_are_as_many_as_there_is_room_for(tagged: Engine) -> None:
    assert len(calls_of(ask(tagged, ONE, NOTHING, **LONG), tags=True)[1]) == 1
    # no end token, and more room than one call can fill
    full = {"ignore_eos": True, **LONG}
    assert len(calls_of(ask(tagged, REQUIRED, NOTHING, **full), tags=True)[1]) > 1
    with pytest.raises(InvalidRequestError, match="exactly 120 tokens"):
        ask(tagged, ONE, NOTHING, **full)


def test_the_named_tool_is_called_and_no_other(tagged: Engine) -> None:
    choice = ToolChoice(ToolMode.REQUIRED, "no")
    for seed in range(3):
        text = ask(tagged, choice, AGE, NOTHING, **LONG, seed=seed)
        assert text == CALL_NOTHING


def test_an_automatic_answer_beside_a_constraint_is_a_call_or_that(tagged: Engine) -> None:
    yes = RegexConstraint("yes|no")
    texts = {
        ask(tagged, ToolChoice(parallel=False), NOTHING, constraint=yes, **LONG, seed=seed)
        for seed in range(8)
    }
    assert texts <= {"yes", "no", CALL_NOTHING}


def test_text_that_is_cut_off_is_not_whole_and_a_call_that_ends_it_is(tagged: Engine) -> None:
    def end(choice: ToolChoice | None, seed: int, **params: Any) -> Output:
        request = Request(
            ChatPrompt(ASK, (NOTHING,), choice), RequestParams(seed=seed, temperature=1.0, **params)
        )
        return run(tagged, request)

    cut = [end(None, seed, max_new_tokens=8) for seed in range(4)]
    assert {o.finish_reason for o in cut if len(o.tokens.ids) == 8} == {FinishReason.LENGTH}
    whole = end(ONE, 0, max_new_tokens=40, ignore_eos=False)
    assert whole.finish_reason is FinishReason.STOP


def test_without_a_call_wanted_the_model_is_told_of_no_tool(tagged: Engine) -> None:
    params = RequestParams(max_new_tokens=12, seed=1)
    silent = Request(ChatPrompt(ASK, (AGE,), ToolChoice(ToolMode.NONE)), params)
    alone = Request(ChatPrompt(ASK), params)
    assert tagged.resolve(silent).canvas == tagged.resolve(alone).canvas
    assert not tagged.resolve(silent).constraints
    assert run(tagged, silent) == run(tagged, alone)


def test_a_neighbour_that_calls_changes_nothing(tagged: Engine) -> None:
    params = RequestParams(max_new_tokens=50, temperature=1.0, seed=4)
    requests = [
        Request(ChatPrompt(ASK, (AGE, NOTHING), choice), params) for choice in (REQUIRED, None)
    ]
    requests.append(Request(ChatPrompt(ASK), params))
    same_in_company(tagged, requests)


# --- refusals --------------------------------------------------------------------


def refused(engine: Engine, request: Request) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(request)
    return {v.field: v.description for v in caught.value.violations}


def with_schema(schema: str) -> ChatPrompt:
    return ChatPrompt(ASK, (NOTHING, Tool("f", parameters=schema)), REQUIRED)


CALL = ToolCall("1", "f", "{}")


@pytest.mark.parametrize(
    ("prompt", "field", "why"),
    [
        (ChatPrompt(ASK, (Tool("f g"),)), "chat.tools[0].name", "1 to 64 letters"),
        (ChatPrompt(ASK, (AGE, AGE)), "chat.tools[1].name", "two have the name 'age'"),
        (ChatPrompt(ASK, (Tool("f", "", "{"),)), "chat.tools[0].parameters", "no JSON"),
        (with_schema('{"const": "\\ud800"}'), "chat.tools[1].parameters", "surrogates"),
        (
            ChatPrompt((ChatMessage("assistant", "", (ToolCall("1", "f", '{"a": "\\ud800"}'),)),)),
            "chat.messages[0].tool_calls[0].arguments",
            "a JSON object",
        ),
        (ChatPrompt(ASK, (AGE,) * 129), "chat.tools", "129 tools; the limit is 128"),
        (ChatPrompt(ASK, (), REQUIRED), "chat.tool_choice", "without tools"),
        (
            ChatPrompt(ASK, (AGE,), ToolChoice(ToolMode.REQUIRED, "g")),
            "chat.tool_choice",
            "no tool has the name 'g'",
        ),
        (
            with_schema('{"$dynamicRef": "#x"}'),
            "chat.tools[1].parameters.$dynamicRef",
            "not supported",
        ),
        (with_schema('{"type": "array"}'), "chat.tools[1].parameters.type", "an object"),
        (with_schema("[]"), "chat.tools[1].parameters", "an object"),
        (
            with_schema('{"properties": {"a": {"items": {"minlength": 1}}}}'),
            "chat.tools[1].parameters.properties.a.items.minlength",
            "minLength is one",
        ),
        (
            with_schema(json.dumps({"description": "a" * 270000})),
            "chat.tools",
            "the limit is 262144",
        ),
        (
            ChatPrompt((ChatMessage("user", "a", (CALL,)),)),
            "chat.messages[0].tool_calls",
            "assistant's alone",
        ),
        (
            ChatPrompt((ChatMessage("assistant", "", (ToolCall("1", "f", "[]"),)),)),
            "chat.messages[0].tool_calls[0].arguments",
            "a JSON object",
        ),
        (
            ChatPrompt((ChatMessage("assistant", "", (ToolCall("1", "", "{}"),)),)),
            "chat.messages[0].tool_calls[0].name",
            "no function's name",
        ),
        (
            ChatPrompt((*ASK, ChatMessage("tool", "x", tool_call_id="1"))),
            "chat.messages[1].tool_call_id",
            "no call before it",
        ),
        (ChatPrompt((ChatMessage("user", "a", name="f"),)), "chat.messages[0].name", "role tool"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(
    tagged: Engine, prompt: ChatPrompt, field: str, why: str
) -> None:
    found = refused(tagged, Request(prompt, RequestParams(max_new_tokens=60)))
    assert list(found) == [field]
    assert why in found[field]


@pytest.mark.parametrize("depth", [100, 400, *range(600, 1000, 20)])
def test_what_is_nested_too_deeply_is_refused(tagged: Engine, plain: Engine, depth: int) -> None:
    nested = '{"items":' * depth + "{}" + "}" * depth
    for engine in (tagged, plain):
        refused(engine, Request(with_schema(f'{{"properties":{{"a":{nested}}}}}')))
        called = ChatMessage("assistant", "", (ToolCall("1", "f", f'{{"a":{nested}}}'),))
        with suppress(InvalidRequestError):  # a template may write as much of it as it can
            engine.resolve(Request(ChatPrompt((called,)), RequestParams(max_new_tokens=4)))


def test_what_tools_cannot_stand_beside_is_refused(tagged: Engine, plain: Engine) -> None:
    prompt = ChatPrompt(ASK, (AGE,))
    assert "required" in refused(plain, Request(prompt))["chat.tool_choice"]
    params = RequestParams(stop_strings=("a",), strategy=FreeDave())
    found = refused(tagged, Request(prompt, params))
    assert set(found) == {"chat.tools", "sampling.stop"}
    short = Request(ChatPrompt(ASK, (AGE,), ONE), RequestParams(max_new_tokens=8))
    assert "more than there are (8)" in refused(tagged, short)["chat.tools"]
    other = JsonSchemaConstraint('{"$dynamicRef": "#x"}')
    found = refused(tagged, Request(ChatPrompt(ASK, (AGE,), ONE), constraint=other))
    assert list(found) == ["constraint.json_schema.$dynamicRef"]
    for choice in (None, REQUIRED):
        asked = Request(ChatPrompt(ASK, (AGE,), choice), constraint=RegexConstraint("("))
        assert "cannot be built" in refused(tagged, asked)["constraint.regex"]


def test_calls_that_were_built_are_known_as_built(tagged: Engine) -> None:
    request = Request(ChatPrompt(ASK, (AGE, Tool("once"))), RequestParams(max_new_tokens=60))
    compiler = compiler_for(tagged.info, tagged.tokenizer)
    known = (tagged.info, tagged.limits, tagged.tokenizer, compiler)
    assert must_build(request, compiler, tagged.tokenizer)
    resolve(request, *known)
    assert not must_build(request, compiler, tagged.tokenizer)


# --- what the model reads ----------------------------------------------------------

TALK = (
    ChatMessage("system", "Be kind."),
    ChatMessage("user", "How old?"),
    ChatMessage("assistant", "", (ToolCall("1", "age", '{"id": 4}'), ToolCall("2", "no", "{}"))),
    ChatMessage("tool", "42", tool_call_id="1"),
    ChatMessage("tool", "nothing", tool_call_id="2"),
)


def test_a_template_that_has_tools_is_given_them_and_the_calls() -> None:
    template = ChatTemplate(TEMPLATE, {"bos_token": ""})
    assert (template.has_tools, template.writes_calls) == (True, True)
    text = template.render(TALK, (AGE,))
    tool = '{"type": "function", "function": {"name": "age", "parameters": '
    assert text.startswith(f"<|user|>{tool}{json.dumps(json.loads(AGE.parameters))}}}}}\n")
    assert text.endswith(
        '<|assistant|><tool_call>\n{"name": "age", "arguments": {"id": 4}}\n</tool_call>\n'
        '<tool_call>\n{"name": "no", "arguments": {}}\n</tool_call><|eot|>'
        "<|user|><tool_response>42</tool_response><|user|><tool_response>nothing</tool_response>"
        "<|assistant|>"
    )


def test_a_template_without_tools_reads_them_as_text() -> None:
    template = ChatTemplate(PLAIN, {})
    assert (template.has_tools, template.writes_calls) == (False, False)
    assert template.render(TALK, (AGE,)) == (
        "system: Be kind.\n\nYou can call functions. A call is one line: "
        '{"name": NAME, "arguments": ARGUMENTS}. The functions:\n'
        f'{{"name": "age", "parameters": {json.dumps(json.loads(AGE.parameters))}}}\n'
        "user: How old?\n"
        'assistant: {"name": "age", "arguments": {"id": 4}}\n{"name": "no", "arguments": {}}\n'
        "user: age: 42\nno: nothing\n"
    )
    assert template.render(ASK, (NOTHING,)).startswith("system: You can call")


def test_a_template_with_calls_of_another_form_has_tools_but_no_automatic_calls() -> None:
    other = TEMPLATE.replace('"arguments": ', '"parameters": ')
    template = ChatTemplate(other, {"bos_token": ""})
    assert (template.has_tools, template.writes_calls) == (True, False)


def test_tags_that_are_special_tokens_are_text_where_the_template_writes_them(
    tagged: Engine, plain: Engine
) -> None:
    assert tagged.tokenizer is not None
    assert plain.tokenizer is not None
    assert tagged.tokenizer.token_bytes(92) == b"<tool_call>"
    assert plain.tokenizer.token_bytes(92) == b""
    # No answer is shorter: a tag is one token here.
    params = RequestParams(max_new_tokens=28)
    ids = run(tagged, Request(ChatPrompt(ASK, (NOTHING,), ONE), params))
    assert {92, 93} <= set(ids.tokens.ids)
