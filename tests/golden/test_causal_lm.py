"""Causal models against transformers' own classes, and which of them are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.engine.tools import GOLDEN, add, finished, run_all, tiny_engine
from tests.golden.test_masked_lm import random_weights
from vdiff_grpc.engine.attention import CAUSAL, AttentionLayout
from vdiff_grpc.engine.models import loader
from vdiff_grpc.engine.models.registry import describe
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import LeftToRight
from vdiff_grpc.engine.types import AttentionPattern, Request, RequestParams
from vdiff_grpc.errors import CheckpointError

VOCAB, LENGTHS = 61, (19, 1, 40, 19)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXED = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_OF_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GEMMA2 = {**_SIZES, "head_dim": 8}
_WINDOWS = ["sliding_attention", "full_attention"]

# class: config class, its parameters
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _SIZES),
    "MistralForCausalLM": ("MistralConfig", {**_SIZES, "sliding_window": 5}),
    "Qwen2ForCausalLM": ("Qwen2Config", _SIZES),
    "Qwen3ForCausalLM": ("Qwen3Config", {**_SIZES, "head_dim": 8}),
    "GemmaForCausalLM": ("GemmaConfig", {**_SIZES, "head_dim": 8}),
    "Gemma3ForCausalLM": (
        "Gemma3TextConfig",
        {**_SIZES, "head_dim": 8, "sliding_window": 5, "layer_types": _WINDOWS},
    ),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {**_GEMMA2, "attn_logit_softcapping": None, "sliding_window": 5},
    ),
    "Phi3ForCausalLM": ("Phi3Config", _SIZES),
    "SmolLM3ForCausalLM": ("SmolLM3Config", _SIZES),
    "Olmo2ForCausalLM": ("Olmo2Config", _SIZES),
    "GraniteForCausalLM": ("GraniteConfig", {**_SIZES, "logits_scaling": 2.0}),
    "CohereForCausalLM": ("CohereConfig", _SIZES),
    "Starcoder2ForCausalLM": ("Starcoder2Config", {**_SIZES, "sliding_window": 5}),
    "GPTNeoXForCausalLM": (
        "GPTNeoXConfig",
        {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"},
    ),
    "GPT2LMHeadModel": ("GPT2Config", _OF_GPT2),
    "MixtralForCausalLM": ("MixtralConfig", {**_SIZES, **_MIXED, "num_local_experts": 4}),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {**_SIZES, **_MIXED, "head_dim": 8, "num_experts": 4},
    ),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Gemma2ForCausalLM": ("Gemma2Config", _GEMMA2, "attn_logit_softcapping is 50.0"),
    "GptOssForCausalLM": (
        "GptOssConfig",
        {**_SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        "s_aux",
    ),
    "BloomForCausalLM": (
        "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 64},
        "attention cannot be exchanged",
    ),
    "BertLMHeadModel": (  # looks ahead: is_decoder is false
        "BertConfig",
        {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"},
        "its own attention and ours differ",
    ),
    "Lfm2ForCausalLM": (
        "Lfm2Config",
        {**_SIZES, "layer_types": ["conv", "full_attention"]},
        "layers of the type conv",
    ),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {
            **_SIZES,
            "head_dim": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 8,
        },
        "chunked_attention|attention_chunk_size is 8",
    ),
}


def build(name: str, config_name: str, sizes: dict[str, Any], folder: Path, **more: Any) -> Any:
    torch.manual_seed(len(name))
    config = getattr(transformers, config_name)(**sizes, **more)
    network = getattr(transformers, name)._from_config(config)
    random_weights(network)
    network.tie_weights()
    network.eval().save_pretrained(folder)
    if "max_position_embeddings" not in (saved := json.loads((folder / "config.json").read_text())):
        saved.setdefault("n_positions", 64)
        (folder / "config.json").write_text(json.dumps(saved))
    return network


def rows() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB, (length,), generator=draw) for length in LENGTHS]


def packed_logits(model: loader.LoadedModel, canvases: list[torch.Tensor]) -> list[torch.Tensor]:
    lengths = [len(row) for row in canvases]
    logits = model.logits(
        torch.cat(canvases),
        torch.cat([torch.arange(length) for length in lengths]),
        AttentionLayout.of_lengths(lengths, [CAUSAL] * len(lengths)),
        torch.arange(sum(lengths)),
    )
    return list(logits.split(lengths))


@pytest.mark.parametrize("name", SERVED)
def test_logits_equal_those_of_the_plain_class(name: str, tmp_path: Path) -> None:
    config_name, sizes = SERVED[name]
    network = build(name, config_name, sizes, tmp_path)
    model = loader.load(str(tmp_path), "cpu", "float32")
    for row, ours in zip(rows(), packed_logits(model, rows()), strict=True):
        with torch.inference_mode():
            expected = network(input_ids=row[None]).logits[0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.05, "a network that says something"


@pytest.mark.parametrize("name", SERVED)
def test_text_written_with_a_cache_equals_whole_passes_of_the_plain_class(
    name: str, tmp_path: Path
) -> None:
    config_name, sizes = SERVED[name]
    network = build(name, config_name, sizes, tmp_path)
    engine = tiny_engine(tmp_path)
    prompts = [
        tuple(row[:length].tolist()) for row, length in zip(rows(), (7, 1, 19), strict=False)
    ]
    for key, prompt in enumerate(prompts):
        params = RequestParams(max_new_tokens=12, ignore_eos=True)
        add(engine, key, Request(TokensPrompt(prompt), params))
    events = run_all(engine)
    for key, prompt in enumerate(prompts):
        canvas = list(finished(events[key]).outputs[0].canvas)
        with torch.inference_mode():
            logits = network(input_ids=torch.tensor([canvas])).logits[0]
            logits[:, engine.info.end_token_ids] = -torch.inf  # ignore_eos
        expected = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        assert (canvas[: len(prompt)], canvas[len(prompt) :]) == (list(prompt), expected)


@pytest.mark.parametrize("name", SERVED)
def test_a_row_is_the_same_in_any_company(name: str, tmp_path: Path) -> None:
    build(name, *SERVED[name], tmp_path)
    engine = tiny_engine(tmp_path)
    requests = [
        Request(
            TokensPrompt(tuple(row[:length].tolist())),
            RequestParams(max_new_tokens=new, temperature=0.5, seed=new, ignore_eos=True),
        )
        for row, length, new in zip(rows(), (7, 1, 33, 12), (6, 15, 9, 20), strict=True)
    ]
    alone = []
    for request in requests:
        add(engine, 0, request)
        alone.append(finished(run_all(engine)[0]).outputs[0].tokens)
    for key, request in enumerate(requests):
        add(engine, key, request)
    together = run_all(engine)
    for key, tokens in enumerate(alone):
        assert finished(together[key]).outputs[0].tokens == tokens, "ids and confidences, exactly"


@pytest.mark.parametrize("name", REFUSED)
def test_what_our_attention_does_not_compute_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config_name, sizes, words = REFUSED[name]
    build(name, config_name, sizes, tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"config.json: {name} cannot be served: .*({words})"
    ):
        loader.load(str(tmp_path), "cpu", "float32")


def test_a_bfloat16_model_passes_its_trial(tmp_path: Path) -> None:
    config_name, sizes = SERVED["Qwen3ForCausalLM"]
    build("Qwen3ForCausalLM", config_name, {**sizes, "num_hidden_layers": 16}, tmp_path)
    assert loader.load(str(tmp_path), "cpu", "bfloat16").dtype is torch.bfloat16


def test_logits_equal_the_recorded_ones() -> None:
    tensors = load_file(GOLDEN / "causal_logits.safetensors")
    names = sorted({name.rpartition(".")[0] for name in tensors})
    model = loader.load(str(GOLDEN / "tiny-causal"), "cpu", "float32")
    ours = packed_logits(model, [tensors[f"{name}.ids"] for name in names])
    for name, logits in zip(names, ours, strict=True):
        torch.testing.assert_close(logits, tensors[f"{name}.logits"], atol=1e-4, rtol=0)


def test_a_causal_model_is_described_as_one(tmp_path: Path) -> None:
    config_name, sizes = SERVED["LlamaForCausalLM"]
    build("LlamaForCausalLM", config_name, sizes, tmp_path)
    info = describe(str(tmp_path))
    assert (info.family, info.attention, info.shift) == ("causal_lm", AttentionPattern.CAUSAL, 1)
    assert (info.mask_token_id, info.supports_infill, info.block_length) == (None, False, None)
    assert (info.strategies, info.default_strategy) == (("left_to_right",), LeftToRight())
    assert (info.end_token_ids, info.max_positions) == ((2,), 64)
