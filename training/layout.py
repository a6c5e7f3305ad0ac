"""Owns the published layouts: this trainer's stacked weights as LLaDA's and Llama's, and back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.model import NORM_EPS, Network, Shape
from training.tokenizer import BOS_ID, EOS_ID, EOT_ID, MASK_ID

LLADA_ATTN = ("q_proj", "k_proj", "v_proj", "attn_out")
LLADA_MLP = ("ff_proj", "up_proj", "ff_out")
LLAMA_ATTN = tuple(f"self_attn.{n}_proj" for n in "qkvo")
LLAMA_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def llada_config(shape: Shape) -> dict[str, object]:
    """config.json in the form of LLaDA-8B-Base."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": shape.width,
        "embedding_dropout": 0.0,
        "embedding_size": shape.vocab,
        "eos_token_id": EOS_ID,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": MASK_ID,
        "max_sequence_length": shape.positions,
        "mlp_hidden_size": shape.hidden,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "n_layers": shape.layers,
        "pad_token_id": EOS_ID,
        "precision": "fp32",
        "residual_dropout": 0.0,
        "rms_norm_eps": NORM_EPS,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": shape.theta,
        "scale_logits": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "vocab_size": shape.vocab,
        "weight_tying": True,
    }


def llama_config(shape: Shape) -> dict[str, object]:
    """config.json of a Llama causal model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "float32",
        "eos_token_id": [EOS_ID, EOT_ID],
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "pad_token_id": EOS_ID,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def names(shape: Shape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published name -> (stacked parameter, index in it)."""
    head = "model." if shape.causal else "model.transformer."
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    out[head + ("embed_tokens" if shape.causal else "wte") + ".weight"] = ("embed", ())
    out[head + ("norm" if shape.causal else "ln_f") + ".weight"] = ("norms", (2 * shape.layers,))
    attn = LLAMA_ATTN if shape.causal else LLADA_ATTN
    mlp = LLAMA_MLP if shape.causal else LLADA_MLP
    norms = (
        ("input_layernorm", "post_attention_layernorm")
        if shape.causal
        else ("attn_norm", "ff_norm")
    )
    for i in range(shape.layers):
        block = f"{head}{'layers' if shape.causal else 'blocks'}.{i}."
        for j, name in enumerate(norms):
            out[f"{block}{name}.weight"] = ("norms", (2 * i + j,))
        for j, name in enumerate(attn):
            out[f"{block}{name}.weight"] = ("attn", (i, j))
        for j, name in enumerate(mlp):
            out[f"{block}{name}.weight"] = ("mlp", (i, j))
    return out


def is_transposed(name: str) -> bool:
    """The down projection is kept transposed in the stack."""
    return name.endswith(("down_proj.weight", "ff_out.weight"))


def published(net: Network) -> dict[str, Tensor]:
    """Weights under their published names."""
    state = net.state_dict()
    out: dict[str, Tensor] = {}
    for name, (stack, index) in names(net.shape).items():
        w = state[stack][index] if index else state[stack]
        out[name] = (w.t() if is_transposed(name) else w).contiguous().clone().float()
    return out


def load_published(folder: Path) -> Network:
    """A network from an exported folder of either layout."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "llama":
        shape = Shape(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            theta=config["rope_parameters"]["rope_theta"],
            causal=True,
        )
    else:
        shape = Shape(
            vocab=config["embedding_size"],
            width=config["d_model"],
            layers=config["n_layers"],
            heads=config["n_heads"],
            hidden=config["mlp_hidden_size"],
            positions=config["max_sequence_length"],
            theta=config["rope_theta"],
        )
    net = Network(shape)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        state = net.state_dict()
        for name, (stack, index) in names(shape).items():
            w = weights[name]
            target = state[stack][index] if index else state[stack]
            target.copy_(w.t() if is_transposed(name) else w)
    return net.eval()
