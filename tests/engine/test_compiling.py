"""A network that is compiled layer by layer: the same tokens, the same in any company."""

from __future__ import annotations

import pytest

from tests.engine.tools import GOLDEN, add, run_all, same_in_company, tiny_engine, trajectory
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.types import EngineConfig, Granularity, Request, RequestParams
from vdiff_grpc.errors import CheckpointError

REQUESTS = [
    Request(
        TokensPrompt(tuple((7 * i + key) % 90 for i in range(5 + 20 * key))),
        RequestParams(max_new_tokens=12, seed=key, temperature=0.4 * key),
        granularity=Granularity.STEPS,
    )
    for key in range(4)
]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # the compiler's own
@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpoint", ["tiny-llada", "tiny-sdar"])
def test_a_compiled_network_gives_the_same_tokens_and_keeps_the_promise(checkpoint: str) -> None:
    plain = tiny_engine(GOLDEN / checkpoint, share_prompts=False)
    compiled = tiny_engine(GOLDEN / checkpoint, compile=True, share_prompts=False)
    assert compiled.model.network.base_model.layers[0]._compiled_call_impl is not None
    alone = same_in_company(compiled, REQUESTS)
    for key, request in enumerate(REQUESTS):
        add(plain, key, request)
    expected = run_all(plain)
    for key in range(len(REQUESTS)):
        found = [[(p, t) for p, t, _ in step] for step in trajectory(alone[key])]
        assert found == [[(p, t) for p, t, _ in step] for step in trajectory(expected[key])]


@pytest.mark.parametrize(
    ("checkpoint", "more", "why"),
    [
        ("tiny-llada-moe", {}, "the family llada_moe have experts"),
        ("tiny-diffusion-gemma", {}, "compute row by row"),
        ("tiny-llada", {"tensor_parallel_size": 2}, "choose one of them"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    checkpoint: str, more: dict[str, int], why: str
) -> None:
    config = EngineConfig(str(GOLDEN / checkpoint), device="cpu", compile=True, **more)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=why):
        Engine(config)
