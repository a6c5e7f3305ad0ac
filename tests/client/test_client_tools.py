"""Tools, as the client asks for them and reads the calls."""

from __future__ import annotations

import json

import pytest

from vdiff_grpc import v1
from vdiff_grpc.client import Client, build_spec, calls, tool

AGE = {"type": "object", "properties": {"age": {"enum": [7, 8]}}, "required": ["age"]}
ASK = {"role": "user", "content": "How old is Tom?"}


def test_an_answer_s_calls_are_read_and_sent_back(demo_address: str) -> None:
    told = [tool("tell", AGE, "Says how old."), tool("stop")]
    with Client(demo_address) as client:
        first = client.generate(
            messages=[ASK], tools=told, tool_choice="tell", max_new_tokens=40, seed=1
        ).outputs[0]
        (call,) = calls(first.text)
        assert call.name == "tell"
        assert json.loads(call.arguments)["age"] in (7, 8)
        back = [
            ASK,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "yes", "tool_call_id": call.id},
        ]
        longer = client.count_tokens(messages=back, tools=told, tool_choice="tell").token_ids
        assert len(longer) > len(
            client.count_tokens(messages=[ASK], tools=told, tool_choice="tell").token_ids
        )
        answer = client.generate(messages=back, tools=told, tool_choice="none", max_new_tokens=4)
        assert not calls(answer.outputs[0].text)


def test_what_is_chosen_reaches_its_field() -> None:
    def chosen(**fields: object) -> v1.ToolChoice:
        spec = build_spec(messages=[ASK], tools=[tool("a")], **fields)  # type: ignore[arg-type]
        return spec.chat.tool_choice

    assert chosen(tool_choice="required").mode == v1.TOOL_MODE_REQUIRED
    assert chosen(tool_choice="a") == v1.ToolChoice(name="a")
    one = chosen(tool_choice="auto", parallel_tool_calls=False)
    assert one == v1.ToolChoice(mode=v1.TOOL_MODE_AUTO, parallel=False)
    assert chosen() == v1.ToolChoice()
    with pytest.raises(ValueError, match="need messages"):
        build_spec(text="a", tools=[tool("a")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no call", []),
        ('see:\n{"name": "a", "arguments": {}}', []),
        ('{"name": "a", "arguments": {}}\n{"name": "b", "arguments": {"x": "}"}}', ["a", "b"]),
        ('Well.<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', ["a"]),
        ('<tool_call>\n{"name": "a", "arguments": {"x": ', []),
        ('{"name": "a", "arguments": {}}\n{"name": "b", "argu', ["a"]),
    ],
)
def test_calls_are_told_from_text(text: str, found: list[str]) -> None:
    assert [call.name for call in calls(text)] == found
