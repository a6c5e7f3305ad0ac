"""Text in and out, on the embedded model: what needs a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.conftest import RunningServer, running
from tests.server.calls import Canvases, stream, violations
from vdiff_grpc import v1
from vdiff_grpc.config import ServerConfig


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with running(ServerConfig(port=0, metrics_port=0, device="cpu", threads=1)) as server:
        yield server


def asked(**fields: Any) -> v1.GenerationSpec:
    sampling = {"seed": 1, "max_new_tokens": 16} | fields.pop("sampling", {})
    fields.setdefault("text", "Once upon a time")
    return v1.GenerationSpec(sampling=v1.SamplingParams(**sampling), **fields)


def generated(server: RunningServer, spec: v1.GenerationSpec) -> v1.Output:
    return server.generation.Generate(v1.GenerateRequest(spec=spec)).outputs[0]


def test_a_text_is_continued_and_its_tokens_spell_it(demo: RunningServer) -> None:
    output = generated(demo, asked(sampling={"ignore_eos": True}))
    assert output.text
    assert b"".join(output.tokens.token_bytes).decode() == output.text
    for offset, piece in zip(output.tokens.text_offsets, output.tokens.token_bytes, strict=True):
        assert output.text.encode()[len(output.text[:offset].encode()) :].startswith(piece)


def test_a_chat_is_answered_and_ends_by_itself(demo: RunningServer) -> None:
    message = v1.ChatMessage(role=v1.ROLE_USER, content="Tell me a story.")
    spec = v1.GenerationSpec(chat=v1.ChatInput(messages=[message]))
    spec.sampling.seed = 1
    reply = demo.generation.Generate(v1.GenerateRequest(spec=spec))
    counted = demo.model.CountTokens(v1.CountTokensRequest(chat=spec.chat))
    assert reply.usage.prompt_tokens == counted.tokens == len(counted.token_ids) > 4
    assert reply.outputs[0].text


def test_text_before_a_suffix_is_a_hole_between_both(demo: RunningServer) -> None:
    spec = asked(suffix=" They lived happily ever after.", sampling={"ignore_eos": True})
    events = list(demo.generation.StreamGenerate(stream(spec)))
    kinds = [span.kind for span in events[0].started.layout.spans]
    assert kinds == [v1.SPAN_KIND_PROMPT, v1.SPAN_KIND_HOLE, v1.SPAN_KIND_FROZEN]
    output = generated(demo, spec)
    assert list(output.hole_texts) == [output.text]


def test_the_layout_and_each_snapshot_tell_their_tokens_texts(demo: RunningServer) -> None:
    spec = asked(suffix=" The end.", sampling={"ignore_eos": True})
    updates: dict[int, list[str]] = {}
    for event in demo.generation.StreamGenerate(stream(spec, v1.GRANULARITY_STEPS)):
        if event.HasField("started"):
            layout = event.started.layout
            canvas = list(layout.texts)
            assert "".join(canvas) == "<|bos|>Once upon a time The end."
            for token_id, text in zip(layout.token_ids, canvas, strict=True):
                assert (token_id == layout.mask_token_id) == (text == "")
        elif event.HasField("step_update"):
            update = event.step_update
            for position, text in zip(update.positions, update.texts, strict=True):
                canvas[position] = text
            updates[update.step] = canvas.copy()
    assert len(updates) > 2
    snapshots = demo.generation.StreamGenerate(stream(spec, v1.GRANULARITY_SNAPSHOTS))
    assert updates == {
        event.snapshot.step: list(event.snapshot.texts)
        for event in snapshots
        if event.HasField("snapshot")
    }


def test_a_stream_of_committed_text_alone_does_not_carry_the_canvas(demo: RunningServer) -> None:
    layout = next(iter(demo.generation.StreamGenerate(stream(asked())))).started.layout
    assert (len(layout.spans), list(layout.token_ids), list(layout.texts)) == (2, [], [])


def test_committed_text_and_tokens_are_those_of_the_unary_reply(demo: RunningServer) -> None:
    spec = asked(sampling={"temperature": 1.0, "n": 2, "ignore_eos": True, "max_new_tokens": 48})
    texts = ["", ""]
    canvases = Canvases()
    for event in demo.generation.StreamGenerate(stream(spec)):
        canvases.apply(event)
        if event.HasField("committed"):
            texts[event.committed.output_index] += event.committed.text
    reply = demo.generation.Generate(v1.GenerateRequest(spec=spec))
    assert texts == [output.text for output in reply.outputs]
    assert [canvases.committed[i] for i in (0, 1)] == [
        list(output.tokens.ids) for output in reply.outputs
    ]


def test_a_stop_string_ends_the_text_before_it(demo: RunningServer) -> None:
    free = generated(demo, asked(sampling={"ignore_eos": True, "max_new_tokens": 48}))
    stop = free.text[len(free.text) // 2 :][:4]
    stopping = {"ignore_eos": True, "max_new_tokens": 48, "stop": v1.StopCriteria(strings=[stop])}
    output = generated(demo, asked(sampling=stopping))
    assert output.text == free.text[: free.text.index(stop)]
    assert output.end.finish_reason == v1.FINISH_REASON_STOP
    assert output.end.stop_string == stop


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (asked(text="word " * 600), "text", "leaves no room"),
        (asked(text="word " * 200_000), "text", "at least"),
        (
            asked(sampling={"stop": v1.StopCriteria(strings=[""])}),
            "sampling.stop.strings[0]",
            "0 characters",
        ),
        (
            asked(sampling={"stop": v1.StopCriteria(strings=["x" * 257])}),
            "sampling.stop.strings[0]",
            "257",
        ),
        (
            asked(sampling={"stop": v1.StopCriteria(strings=["x"] * 17)}),
            "sampling.stop.strings",
            "17",
        ),
    ],
)
def test_wrong_text_is_refused_by_name(
    demo: RunningServer, spec: v1.GenerationSpec, field: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        generated(demo, spec)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in violations(refused.value)[f"spec.{field}"]
    assert "word word" not in refused.value.details()


def test_the_embedded_model_says_what_it_can(demo: RunningServer) -> None:
    info = demo.model.GetModelInfo(v1.GetModelInfoRequest())
    assert info.model == "vdiff-demo"
    assert (info.has_tokenizer, info.has_chat_template, info.supports_infill) == (True, True, True)


def test_text_is_counted_as_generation_counts_it(demo: RunningServer) -> None:
    counted = demo.model.CountTokens(v1.CountTokensRequest(text="Once upon a time"))
    reply = demo.generation.Generate(v1.GenerateRequest(spec=asked()))
    assert counted.tokens == len(counted.token_ids) == reply.usage.prompt_tokens
