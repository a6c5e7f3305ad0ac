"""DiffusionGemma over real gRPC: its own defaults, its canvases, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.conftest import RunningServer
from tests.golden.test_diffusion_gemma import CANVAS, TINY_GEMMA
from tests.server.calls import Canvases, generate, ids, spec, stream, violations
from vdiff_grpc import v1


@pytest.fixture
def gemma(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(model=str(TINY_GEMMA), served_model_name=("gemma",))


def gemma_spec(**sampling: Any) -> v1.GenerationSpec:
    """12 tokens by default: one canvas and a half."""
    asked_for = spec((5, 17, 42), **({"max_new_tokens": 12} | sampling))
    asked_for.ClearField("diffusion")
    return asked_for


def test_a_request_gets_what_the_checkpoint_asks_for(gemma: RunningServer) -> None:
    info = gemma.model.GetModelInfo(v1.GetModelInfoRequest())
    assert list(info.strategies) == ["uniform_noise"]
    assert info.attention == v1.ATTENTION_PATTERN_CANVAS
    reply = gemma.generation.Generate(generate(gemma_spec(n=2)))
    resolved = reply.resolved.diffusion
    assert resolved.block_length == CANVAS
    assert resolved.uniform_noise == v1.UniformNoise(
        entropy_bound=0.4,
        t_min=0.3,
        t_max=0.7,
        max_denoising_steps=10,
        stability_threshold=1,
        confidence_threshold=0.05,
    )
    assert [len(tokens) for tokens in ids(reply)] == [12, 12]
    assert ids(reply)[0] != ids(reply)[1]
    again = v1.GenerationSpec(
        token_ids=gemma_spec().token_ids,
        sampling=reply.resolved.sampling,
        diffusion=resolved,
    )
    assert ids(gemma.generation.Generate(generate(again))) == ids(reply)


def test_updates_give_the_final_canvas(gemma: RunningServer) -> None:
    asked_for = gemma_spec(seed=4)
    asked_for.diffusion.uniform_noise.max_denoising_steps = 6
    canvases, kinds = Canvases(), set()
    for event in gemma.generation.StreamGenerate(stream(asked_for, v1.GRANULARITY_STEPS)):
        canvases.apply(event)
        if event.HasField("step_update"):
            kinds.add(event.step_update.kind)
    (tokens,) = ids(gemma.generation.Generate(generate(asked_for)))
    assert canvases.committed[0] == tokens
    assert canvases.canvas[0][3 : 3 + len(tokens)] == tokens
    assert v1.UPDATE_KIND_REMASK in kinds
    assert canvases.finished is not None
    metrics = canvases.finished.metrics
    assert metrics.blocks == 2
    assert metrics.forward_passes == metrics.steps + 2, "the encoder reads before each canvas"


def test_guidance_is_refused_by_name(gemma: RunningServer) -> None:
    asked_for = gemma_spec()
    asked_for.diffusion.cfg_scale = 1.0
    with pytest.raises(grpc.RpcError) as refused_call:
        gemma.generation.Generate(generate(asked_for))
    assert "no mask token" in violations(refused_call.value)["spec.diffusion.cfg_scale"]
