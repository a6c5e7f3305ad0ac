"""Models whose attention looks back only: what is served of them, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from tests.conftest import TINY, RunningServer
from tests.server.calls import Canvases, generate, ids, spec, stream, violations
from vdiff_grpc import v1
from vdiff_grpc.client import Canvas

Serve = Callable[..., RunningServer]
BLOCK_CAUSAL = TINY.parent / "tiny-sdar"
CAUSAL = TINY.parent / "tiny-causal"


def asking(num_new: int, **diffusion: object) -> v1.GenerationSpec:
    asked = spec([5, 17, 42], max_new_tokens=num_new)
    asked.diffusion.CopyFrom(v1.DiffusionParams(**diffusion))  # type: ignore[arg-type]
    return asked


def test_a_block_causal_model_fills_whole_blocks_and_answers_what_was_asked(serve: Serve) -> None:
    server = serve(model=str(BLOCK_CAUSAL))
    info = server.model.GetModelInfo(v1.GetModelInfoRequest())
    assert info.attention == v1.ATTENTION_PATTERN_BLOCK_CAUSAL
    assert info.cache == v1.CACHE_POLICY_SETTLED
    assert info.block_length == info.limits.max_block_length == 4
    assert info.defaults.diffusion.block_length == 4
    assert "wino" not in info.strategies

    canvases, canvas = Canvases(), Canvas()
    for event in server.generation.StreamGenerate(stream(asking(6), v1.GRANULARITY_STEPS)):
        canvases.apply(event)
        canvas.apply(event)
        if event.HasField("started"):
            assert [(span.kind, span.length) for span in event.started.layout.spans] == [
                (v1.SPAN_KIND_PROMPT, 3),
                (v1.SPAN_KIND_HOLE, 6),
                (v1.SPAN_KIND_SURPLUS, 3),
            ]
            assert event.started.resolved.sampling.max_new_tokens == 6
    assert canvases.positions[0] == list(range(3, 9))
    assert canvases.committed[0] == canvases.canvas[0][3:9]
    assert canvas.outputs[0].token_ids == canvases.canvas[0]
    reply = server.generation.Generate(generate(asking(6, block_length=4)))
    assert ids(reply) == [canvases.committed[0]]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 6)
    for name in info.strategies:
        asked = asking(6)
        getattr(asked.diffusion, name).SetInParent()
        if name != "adaptive_parallel":
            assert len(ids(server.generation.Generate(generate(asked)))[0]) == 6, name

    refused = violations(refusal(server, asking(6, block_length=8)))
    assert "(8)" in refused["spec.diffusion.block_length"]
    assert "(4)" in refused["spec.diffusion.block_length"]
    asked = asking(6)
    asked.diffusion.wino.SetInParent()
    assert list(violations(refusal(server, asked))) == ["spec.diffusion.wino"]


def test_a_causal_model_answers_from_left_to_right(serve: Serve) -> None:
    server = serve(model=str(CAUSAL))
    info = server.model.GetModelInfo(v1.GetModelInfoRequest())
    assert info.attention == v1.ATTENTION_PATTERN_CAUSAL
    assert list(info.strategies) == ["left_to_right"]
    assert not info.HasField("mask_token_id")
    events = list(server.generation.StreamGenerate(stream(asking(6), v1.GRANULARITY_STEPS)))
    assert events[0].started.layout.mask_token_id == info.vocab_size
    order = [p for event in events for p in event.step_update.positions]
    assert order == list(range(3, 9))
    for diffusion, field in [
        (v1.DiffusionParams(block_length=8), "spec.diffusion.block_length"),
        (v1.DiffusionParams(steps=3), "spec.diffusion.steps"),
        (v1.DiffusionParams(cfg_scale=1), "spec.diffusion.cfg_scale"),
        (v1.DiffusionParams(klass=v1.Klass()), "spec.diffusion.klass"),
    ]:
        asked = asking(6)
        asked.diffusion.CopyFrom(diffusion)
        assert list(violations(refusal(server, asked))) == [field]


def refusal(server: RunningServer, asked: v1.GenerationSpec) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        server.generation.Generate(generate(asked))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return refused.value


def test_a_prompt_sent_twice_is_read_once_and_the_reply_says_so(serve: Serve) -> None:
    server = serve(model=str(BLOCK_CAUSAL))
    info = server.model.GetModelInfo(v1.GetModelInfoRequest())
    assert list(info.caches) == [v1.CACHE_POLICY_SETTLED]
    assert info.limits.max_cache_tokens % 32 == 0
    prompt = [(7 * i) % 90 for i in range(70)]
    asked = spec(prompt, max_new_tokens=8, seed=1)
    asked.diffusion.Clear()
    first, second = (server.generation.Generate(generate(asked)) for _ in range(2))
    assert ids(first) == ids(second)
    assert (first.usage.shared_prompt_tokens, second.usage.shared_prompt_tokens) == (0, 64)
    assert second.metrics.computed_tokens == first.metrics.computed_tokens - 64
    statistics = server.model.GetServerInfo(v1.GetServerInfoRequest()).statistics
    assert statistics.shared_prompt_tokens == 64
    assert statistics.cache_tokens == 0, "both have left"
