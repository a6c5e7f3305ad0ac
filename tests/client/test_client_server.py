"""Both clients against a real server with the embedded model."""

from __future__ import annotations

import contextlib
import time

import pytest

from vdiff_grpc import v1
from vdiff_grpc.client import (
    AsyncClient,
    Canvas,
    Client,
    InvalidArgumentError,
    NotFoundError,
    TimedOutError,
    confidence_threshold,
    hole,
    strategy,
)

PROMPT = "Once upon a time"


def test_generate_answers_with_text_and_the_parameters_used(demo_address: str) -> None:
    with Client(demo_address) as client:
        client.wait_until_ready(30)
        reply = client.generate(
            PROMPT, max_new_tokens=16, seed=3, n=2, request_id="with-parameters"
        )
    assert reply.request_id == "with-parameters"
    assert [output.index for output in reply.outputs] == [0, 1]
    assert reply.resolved.sampling.seed == 3
    assert reply.resolved.sampling.max_new_tokens == 16


@pytest.mark.parametrize("granularity", ["committed", "steps", "snapshots"])
def test_a_canvas_fed_by_the_stream_holds_the_unary_reply(
    demo_address: str, granularity: str
) -> None:
    with Client(demo_address) as client:
        reply = client.generate(PROMPT, max_new_tokens=24, seed=5, n=2, ignore_eos=True)
        canvas = Canvas()
        for event in client.stream(
            PROMPT,
            granularity=granularity,  # type: ignore[arg-type]
            max_new_tokens=24,
            seed=5,
            n=2,
            ignore_eos=True,
        ):
            canvas.apply(event)
    assert canvas.finished is not None
    for output, held in zip(reply.outputs, canvas.outputs, strict=True):
        assert held.text == output.text
        assert held.num_masked == 0
        assert [held.token_ids[p] for p in output.tokens.positions] == list(output.tokens.ids)
        assert held.end == output.end


def test_chat_and_infill_and_token_ids_are_accepted(demo_address: str) -> None:
    with Client(demo_address) as client:
        chat = client.generate(messages=[{"role": "user", "content": "Hi"}], max_new_tokens=8)
        filled = client.generate(infill=["The cat sat", hole(4), " the house."])
        ids = client.count_tokens(PROMPT).token_ids
        raw = client.generate(token_ids=ids, max_new_tokens=8, seed=1)
        text = client.generate(PROMPT, max_new_tokens=8, seed=1)
        suffix = client.generate("The cat sat", suffix=" the house.", max_new_tokens=4)
    assert chat.outputs[0].end.finish_reason
    assert len(filled.outputs[0].hole_texts) == 1
    assert len(suffix.outputs[0].hole_texts) == 1
    assert raw.outputs[0].tokens == text.outputs[0].tokens


def test_a_threshold_takes_fewer_forward_passes(demo_address: str) -> None:
    with Client(demo_address) as client:
        reply = client.generate(
            PROMPT, max_new_tokens=32, ignore_eos=True, strategy=confidence_threshold(0.3)
        )
    assert 0 < reply.metrics.forward_passes < 32


def test_every_strategy_of_the_model_answers(demo_address: str) -> None:
    with Client(demo_address) as client:
        info = client.model_info()
        assert "adaptive_parallel" in info.strategies
        assert info.auxiliary_model, "the embedded model has its twin beside it"
        for name in info.strategies:
            reply = client.generate(
                PROMPT, max_new_tokens=16, temperature=0, strategy=strategy(name), top_logprobs=2
            )
            assert reply.resolved.diffusion.WhichOneof("strategy") == name
            tokens = reply.outputs[0].tokens
            assert reply.outputs[0].text
            for data, top in zip(tokens.token_bytes, tokens.top_tokens, strict=True):
                assert len(top.token_bytes) == 2
                if name != "adaptive_parallel":  # it takes the mixture's
                    assert top.token_bytes[0] == data


def test_wrong_fields_are_named_and_a_wrong_model_is_not_found(demo_address: str) -> None:
    with Client(demo_address) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            client.generate(PROMPT, temperature=3.0)
        assert "temperature" in caught.value.violations[0].field
        with pytest.raises(NotFoundError) as missing:
            client.generate(PROMPT, model="another")
        assert missing.value.reason == "MODEL_NOT_FOUND"


def test_a_deadline_is_a_timeout(demo_address: str) -> None:
    with Client(demo_address) as client, pytest.raises(TimedOutError):
        client.generate(PROMPT, max_new_tokens=400, ignore_eos=True, timeout_s=0.05)


def test_a_stream_that_is_left_early_frees_its_row(demo_address: str) -> None:
    with Client(demo_address) as client:
        with contextlib.closing(
            client.stream(PROMPT, max_new_tokens=400, ignore_eos=True)
        ) as events:
            assert next(events).HasField("started")
        _wait_until_idle(client)


def test_info_names_the_model_and_its_limits(demo_address: str) -> None:
    with Client(demo_address) as client:
        info = client.model_info()
        server = client.server_info()
    assert info.limits.max_canvas_tokens > 0
    assert server.model == info.model
    assert server.state == v1.ENGINE_STATE_READY


async def test_the_asyncio_client_does_the_same(demo_address: str) -> None:
    async with AsyncClient(demo_address) as client:
        await client.wait_until_ready(30)
        reply = await client.generate(PROMPT, max_new_tokens=8, seed=2)
        canvas = Canvas()
        async with contextlib.aclosing(
            client.stream(PROMPT, granularity="steps", max_new_tokens=8, seed=2)
        ) as events:
            async for event in events:
                canvas.apply(event)
        assert canvas.outputs[0].text == reply.outputs[0].text
        assert (await client.count_tokens(PROMPT)).tokens == canvas.started.prompt_tokens  # type: ignore[union-attr]
        assert (await client.model_info()).model == (await client.server_info()).model
        with pytest.raises(InvalidArgumentError):
            await client.generate(PROMPT, top_p=2.0)


def _wait_until_idle(client: Client) -> None:
    deadline = time.monotonic() + 10
    while client.server_info().statistics.running_rows:
        assert time.monotonic() < deadline, "the row is still held"
