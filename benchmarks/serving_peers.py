"""What serving.py compares with: where each peer comes from, and the checkpoint they all load.

Nothing of a peer is in this repository: packages come from PyPI into a folder of their own, on top
of our torch; what is published as a repository only is cloned, or lies where one is told.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.gateways import PeerError

VOCAB_SIZE = 126_464
MASK_ID = 126_336
END_ID = 126_081
_SPECIALS = {END_ID: "<|endoftext|>", MASK_ID: "<|mdm_mask|>", 126_348: "<|eot_id|>"}

_REQUIREMENTS = ("transformers<5", "fastapi", "uvicorn", "prometheus-client", "einops", "jinja2")
DLMSERVE = "0.1.1"
REPOSITORIES = {
    "LLaDA": ("https://github.com/ML-GSAI/LLaDA", "b7e6c3565f194352da44b38dd12b6970597309f3"),
    # LLaDA's modelling class: GSAI-ML's own, whose repository is the checkpoint itself, with a cache.
    "Fast-dLLM": (
        "https://github.com/NVlabs/Fast-dLLM",
        "24cc59e75f20a6384bae8c905965bb090b96388e",
    ),
    "dInfer": ("https://github.com/inclusionAI/dInfer", "fce4e32804103baa5d55230dff0352da0cdd6ceb"),
}


def packages(folder: Path) -> Path:
    """dlmserve and what it needs, made at first use. Raises PeerError."""
    target = folder / f"dlmserve-{DLMSERVE}"
    done = target / "installed"
    if not done.exists():
        print(f"installing dlmserve {DLMSERVE} into {target}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target)]
        _run([*pip, *_REQUIREMENTS])
        # Without what only its quantisation and its evaluation import.
        _run([*pip, "--no-deps", f"dlmserve=={DLMSERVE}"])
        done.touch()
    return target


def repository(folder: Path, name: str) -> Path:
    """A clone at the commit that is compared, made at first use. Raises PeerError."""
    clone = folder / name
    if not clone.exists():
        url, commit = REPOSITORIES[name]
        print(f"cloning {url}", file=sys.stderr)
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        _run(["git", "clone", "-q", "--no-checkout", "--filter=blob:none", url, str(part)])
        _run(["git", "-C", str(part), "checkout", "-q", commit])
        part.rename(clone)
    return clone


def write_checkpoint(
    folder: Path, code: Path, *, width: int, layers: int, vocab_size: int = VOCAB_SIZE
) -> None:
    """Random weights in the shape of LLaDA-8B, in float32 that bfloat16 can hold.

    code: folder with the published modelling code; it is copied beside the weights.
    The logits are spread (by 3) as a trained model's are, so that confidences differ.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).bfloat16().float()

    inner = 3 * width
    weights = {
        "model.transformer.wte.weight": random(vocab_size, width),
        "model.transformer.ff_out.weight": random(vocab_size, width, scale=3 / width**0.5),
        "model.transformer.ln_f.weight": torch.ones(width),
    }
    for layer in range(layers):
        block = f"model.transformer.blocks.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            weights[f"{block}{name}.weight"] = random(width, width, scale=width**-0.5)
        for name in ("ff_proj", "up_proj"):
            weights[f"{block}{name}.weight"] = random(inner, width, scale=width**-0.5)
        weights[f"{block}ff_out.weight"] = random(width, inner, scale=inner**-0.5)
        for name in ("attn_norm", "ff_norm"):
            weights[f"{block}{name}.weight"] = torch.ones(width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(width, layers, vocab_size), indent=1))
    _write_tokenizer(folder, vocab_size)
    for file in ("configuration_llada.py", "modeling_llada.py"):
        if (code / file).exists():
            shutil.copy(code / file, folder)


def prompt_text(ids: Iterable[int]) -> str:
    """What the checkpoint's tokenizer makes these ids of."""
    return " ".join(f"w{i}" for i in ids)


def _config(width: int, layers: int, vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": width // 64,
        "n_kv_heads": width // 64,
        "mlp_hidden_size": 3 * width,
        "mlp_ratio": 4,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "max_sequence_length": 1024,
        "mask_token_id": min(MASK_ID, vocab_size - 1),
        "eos_token_id": min(END_ID, vocab_size - 2),
        "pad_token_id": min(END_ID, vocab_size - 2),
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "embedding_dropout": 0.0,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_device": "cpu",
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "multi_query_attention": None,
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "use_cache": False,
        "weight_tying": False,
    }


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One token for each of the words w0, w1, ...; a template that adds nothing."""
    specials = {i: text for i, text in _SPECIALS.items() if i < vocab_size}
    words = {specials.get(i, f"\u2581w{i}"): i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="\u2581w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(specials.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": specials.get(END_ID),
        "pad_token": specials.get(END_ID),
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2]
        raise PeerError(f"{command[-1]} cannot be had: {last}")
