"""POST /v1/completions, as the openai client sees it."""

from __future__ import annotations

import openai
import pytest

from tests.conftest import RunningServer
from vdiff_grpc import v1

PROMPT = "Once upon a time"


def token_ids(server: RunningServer, text: str) -> list[int]:
    return list(server.model.CountTokens(v1.CountTokensRequest(text=text)).token_ids)


def complete(client: openai.OpenAI, **fields: object) -> openai.types.Completion:
    extra = {k: fields.pop(k) for k in list(fields) if k in ("ignore_eos", "strategy", "steps")}
    given = {"model": "demo", "prompt": PROMPT, "max_tokens": 16, "seed": 1} | fields
    return client.completions.create(**given, extra_body=extra)  # type: ignore[call-overload,no-any-return]


def test_a_completion_has_text_usage_and_the_models_revision(
    client: openai.OpenAI, demo: RunningServer
) -> None:
    reply = complete(client, ignore_eos=True)
    assert reply.id.startswith("cmpl-")
    assert (reply.object, reply.model) == ("text_completion", "demo")
    info = demo.model.GetModelInfo(v1.GetModelInfoRequest())
    assert reply.system_fingerprint == info.revision
    (choice,) = reply.choices
    assert choice.text
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert reply.usage is not None
    prompt_tokens = len(token_ids(demo, PROMPT))
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt_tokens, 16)
    assert reply.usage.total_tokens == prompt_tokens + 16


async def test_the_asynchronous_client_gets_the_same(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    reply = await aclient.completions.create(model="demo", prompt=PROMPT, max_tokens=16, seed=1)
    assert reply.choices[0].text == complete(client).choices[0].text


def test_a_model_that_is_not_named_is_the_served_one_and_an_alias_is_too(
    client: openai.OpenAI,
) -> None:
    text = complete(client).choices[0].text
    # The reply has the name that the client used: LangChain compares.
    for given, told in (("", "demo"), ("demo-alias", "demo-alias")):
        reply = complete(client, model=given)
        assert (reply.choices[0].text, reply.model) == (text, told)
        chunks = list(complete(client, model=given, stream=True))  # type: ignore[call-overload]
        assert {chunk.model for chunk in chunks} == {told}


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        return complete(client, seed=seed, temperature=1.0, max_tokens=24).choices[0].text

    assert text(5) == text(5)
    assert len({text(seed) for seed in (5, 6, 7)}) > 1


def test_a_negative_seed_is_taken_modulo_two_to_the_64(client: openai.OpenAI) -> None:
    assert (
        complete(client, seed=-1, temperature=1.0).choices
        == complete(client, seed=2**64 - 1, temperature=1.0).choices
    )


def test_a_whole_number_may_be_written_with_a_point(client: openai.OpenAI) -> None:
    ids = [5.0, 17.0]
    text = complete(client, prompt=[5, 17], n=2).choices[1].text
    written = complete(client, prompt=ids, max_tokens=16.0, seed=1.0, n=2.0)
    assert written.choices[1].text == text
    with pytest.raises(openai.BadRequestError, match=r"max_tokens \(16\.5\)"):
        complete(client, prompt=ids, max_tokens=16.5)


def test_n_answers_are_numbered_and_the_first_is_that_of_the_seed_alone(
    client: openai.OpenAI,
) -> None:
    both = complete(client, n=2, temperature=2.0, ignore_eos=True).choices
    assert [choice.index for choice in both] == [0, 1]
    assert both[0].text != both[1].text
    assert both[0].text == complete(client, temperature=2.0, ignore_eos=True).choices[0].text


def test_a_list_of_prompts_is_answered_in_order_with_openais_numbering(
    client: openai.OpenAI,
) -> None:
    prompts = [PROMPT, "The dog"]
    reply = complete(client, prompt=prompts, n=2, ignore_eos=True, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    alone = [
        choice.text
        for prompt in prompts
        for choice in complete(client, prompt=prompt, n=2, ignore_eos=True, temperature=1.0).choices
    ]
    assert [choice.text for choice in reply.choices] == alone
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4 * 16


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI, demo: RunningServer) -> None:
    ids = token_ids(demo, PROMPT)
    text = complete(client).choices[0].text
    assert complete(client, prompt=ids).choices[0].text == text
    lists = complete(client, prompt=[ids, token_ids(demo, "The dog")])
    assert lists.choices[0].text == text
    assert lists.choices[1].text == complete(client, prompt="The dog").choices[0].text


def test_the_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=32, ignore_eos=True).choices[0].text
    stop = whole.split()[2]
    for given in (stop, ["never said", stop]):
        choice = complete(client, max_tokens=32, ignore_eos=True, stop=given).choices[0]
        assert choice.text == whole[: whole.index(stop)]
        assert choice.finish_reason == "stop"


def test_echo_puts_the_prompt_before_the_answer(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == PROMPT + plain


def test_a_suffix_is_filled_up_to(client: openai.OpenAI, demo: RunningServer) -> None:
    prompt, suffix = "Once upon a time there was a", " who lived in a big forest."
    reply = complete(client, prompt=prompt, suffix=suffix, max_tokens=8)
    direct = demo.generation.Generate(
        v1.GenerateRequest(
            spec=v1.GenerationSpec(
                text=prompt,
                suffix=suffix,
                sampling=v1.SamplingParams(max_new_tokens=8, seed=1),
            )
        )
    )
    assert reply.choices[0].text == direct.outputs[0].text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == direct.usage.prompt_tokens
    assert reply.usage.prompt_tokens > len(token_ids(demo, prompt))


def test_diffusions_own_fields_reach_the_server(client: openai.OpenAI, demo: RunningServer) -> None:
    strategy = {"type": "confidence_threshold", "threshold": 0.5}
    before = demo.statistics().forward_passes
    complete(client, strategy=strategy, max_tokens=32, ignore_eos=True)
    between = demo.statistics().forward_passes
    complete(client, steps=32, max_tokens=32, ignore_eos=True)
    after = demo.statistics().forward_passes
    assert after - between == 32
    assert 0 < between - before < 32


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].text
    accepted = {
        "user": "someone",
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "best_of": 1,
        "logprobs": None,
        "stream_options": {"include_usage": True},
        "extra_headers": {"openai-organization": "x"},
    }
    assert complete(client, **accepted).choices[0].text == text
