"""Every strategy of the contract, asked for over real gRPC."""

from __future__ import annotations

import math

import pytest

from tests.conftest import TINY, RunningServer
from tests.server.calls import MASK, PROMPT, Canvases, generate, ids, spec, stream
from vdiff_grpc import v1
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.strategies import STRATEGIES

# It has no auxiliary model.
SERVED = sorted(set(describe(str(TINY)).strategies) - {"adaptive_parallel"})
# Ready to change its mind: a random network is sure of nothing.
REVOCABLE = {
    "wino": v1.DiffusionParams(wino=v1.Wino(threshold=0.0, threshold_back=0.03)),
    "remdm": v1.DiffusionParams(remdm=v1.Remdm(eta=0.5), steps=24),
    "editing": v1.DiffusionParams(editing=v1.Editing(threshold=0.0, edit_threshold=0.0)),
}


def asking(name: str, **sampling: object) -> v1.GenerationSpec:
    asked = spec(**sampling)
    getattr(asked.diffusion, name).SetInParent()
    return asked


@pytest.mark.parametrize("name", SERVED)
def test_what_is_resolved_is_complete_and_asks_for_the_same_again(
    server: RunningServer, name: str
) -> None:
    asked = asking(name, temperature=1.0, seed=3)
    asked.diffusion.block_length = 8
    reply = server.generation.Generate(generate(asked))
    resolved = reply.resolved.diffusion
    assert resolved.WhichOneof("strategy") == name
    assert resolved.HasField("steps") == STRATEGIES[name].HAS_STEPS
    told = {field.name for field, _ in getattr(resolved, name).ListFields()}
    zero = {n for n, given in STRATEGIES[name].ranges().items() if given.default == 0}
    unused = {"t_on", "t_off", "alpha_on"} if name == "remdm" else set()
    assert told | zero == set(STRATEGIES[name].ranges()) - unused
    again = v1.GenerationSpec(
        token_ids=asked.token_ids, sampling=reply.resolved.sampling, diffusion=resolved
    )
    second = server.generation.Generate(generate(again))
    assert ids(second) == ids(reply)
    assert second.resolved == reply.resolved


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("stride", [1, 3])
def test_the_updates_of_every_strategy_give_the_final_canvas(
    server: RunningServer, name: str, stride: int
) -> None:
    asked = asking(name, n=2, temperature=1.0, max_new_tokens=20)
    if name in REVOCABLE:
        asked.diffusion.CopyFrom(REVOCABLE[name])
    asked.diffusion.block_length = 10
    canvases = Canvases()
    request = stream(asked, v1.GRANULARITY_STEPS, stride=stride)
    for event in server.generation.StreamGenerate(request):
        canvases.apply(event)
    reply = server.generation.Generate(generate(asked))
    for index, tokens in enumerate(ids(reply)):
        assert len(tokens) == 20
        assert MASK not in tokens
        assert canvases.canvas[index] == PROMPT + tokens
        assert canvases.committed[index] == tokens


@pytest.mark.parametrize("name", sorted(REVOCABLE))
def test_what_may_still_change_is_not_committed_and_changes_are_counted(
    server: RunningServer, name: str
) -> None:
    asked = spec(temperature=1.0, max_new_tokens=24, seed=2)
    asked.diffusion.CopyFrom(REVOCABLE[name])
    asked.diffusion.block_length = 12
    committed: set[int] = set()
    changes = {v1.UPDATE_KIND_REMASK: 0, v1.UPDATE_KIND_REVISE: 0}
    metrics = v1.Metrics()
    for event in server.generation.StreamGenerate(stream(asked, v1.GRANULARITY_STEPS)):
        committed |= set(event.committed.tokens.positions)
        update = event.step_update
        assert not committed & set(update.positions), "committed, and changed all the same"
        if update.kind in changes:
            changes[update.kind] += len(update.positions)
        if update.kind == v1.UPDATE_KIND_REMASK:
            assert set(update.token_ids) == {MASK}
        if event.HasField("finished"):
            metrics = event.finished.metrics
    assert sum(changes.values()) > 0, "it never changed its mind: nothing was tested"
    assert metrics.remasked == changes[v1.UPDATE_KIND_REMASK]
    assert metrics.revised == changes[v1.UPDATE_KIND_REVISE]


@pytest.mark.parametrize("name", ["fixed_schedule", "wino"])
def test_the_most_likely_tokens_are_told_with_their_probabilities(
    server: RunningServer, name: str
) -> None:
    asked = asking(name, top_logprobs=5)
    tokens = server.generation.Generate(generate(asked)).outputs[0].tokens
    assert len(tokens.top_tokens) == len(tokens.ids) == 16
    for token_id, confidence, top in zip(
        tokens.ids, tokens.confidences, tokens.top_tokens, strict=True
    ):
        assert len(top.ids) == len(set(top.ids)) == len(top.logprobs) == 5
        assert list(top.logprobs) == sorted(top.logprobs, reverse=True)
        assert sum(map(math.exp, top.logprobs)) <= 1 + 1e-5
        # at temperature 0 the most likely token is the one that was taken
        assert top.ids[0] == token_id
        assert math.exp(top.logprobs[0]) == pytest.approx(confidence, rel=1e-4)
        assert list(top.token_bytes) == [], "there is no tokenizer"


def test_a_stream_tells_the_most_likely_tokens_that_the_unary_call_tells(
    server: RunningServer,
) -> None:
    asked = asking("confidence_threshold", top_logprobs=3, temperature=1.0)
    unary = server.generation.Generate(generate(asked)).outputs[0].tokens
    streamed = v1.Tokens()
    for event in server.generation.StreamGenerate(stream(asked)):
        streamed.MergeFrom(event.committed.tokens)
    assert streamed == unary
    assert len(streamed.top_tokens) == 16


def test_without_being_asked_no_likely_tokens_are_told(server: RunningServer) -> None:
    reply = server.generation.Generate(generate(spec()))
    assert not reply.outputs[0].tokens.top_tokens
    assert reply.resolved.sampling.HasField("top_logprobs")
    assert reply.resolved.sampling.top_logprobs == 0
