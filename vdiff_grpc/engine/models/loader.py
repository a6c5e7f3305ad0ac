"""Loads a checkpoint's weights into the transformers class of its family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vdiff_grpc.engine import attention
from vdiff_grpc.engine.attention import AttentionLayout
from vdiff_grpc.engine.models.registry import find_family, read_json
from vdiff_grpc.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device. shift: logits of position p predict position p + shift."""

    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    shift: int

    @property
    def vocab_width(self) -> int:
        """Columns of the logits; may be more than the vocabulary."""
        embeddings: nn.Embedding = self.network.get_input_embeddings()  # type: ignore[operator]
        return embeddings.num_embeddings

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, position_ids: Tensor, layout: AttentionLayout, head: Tensor
    ) -> Tensor:
        """[num_head, vocab_size] float32.

        token_ids, position_ids: [num_tokens] int64, packed; head: [num_head] indices into them.
        """
        output = self.network(
            input_ids=token_ids.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            layout=layout,
            logits_to_keep=head,
            use_cache=False,
        )
        logits: Tensor = output.logits[0]
        return logits.float()


def choose_device(wanted: str) -> torch.device:
    """ "auto": cuda, then mps, then cpu. Raises CheckpointError when it is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"device {wanted!r} cannot be used here: {first}") from error
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """ "auto": bfloat16 on cuda, else float32."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]


def load(path: str, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Raises CheckpointError naming the file or the keys; never leaves a weight uninitialised."""
    root = Path(path)
    raw = read_json(root / "config.json")
    family = find_family(raw, str(root / "config.json"))
    target = choose_device(device)
    kind = choose_dtype(dtype, target)
    _check_files(root)
    attention.register()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it reports, _check_loaded raises
    try:
        config = getattr(transformers, family.transformers_config)(**family.to_config(raw))
    except KeyError as error:
        raise CheckpointError(
            f"{root / 'config.json'}: the key {error.args[0]!r} is missing"
        ) from error
    config._attn_implementation = attention.BACKEND
    try:
        network, info = getattr(transformers, family.transformers_class).from_pretrained(
            str(root),
            config=config,
            key_mapping=dict(family.key_mapping),
            dtype=kind,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=attention.BACKEND,
            ignore_mismatched_sizes=True,  # told by _check_loaded, with the shapes
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights cannot be loaded: {error}") from error
    _check_loaded(root, info)
    network.eval().requires_grad_(False)
    return LoadedModel(network.to(target), target, kind, family.shift)


def _check_files(root: Path) -> None:
    """Weights are there, as safetensors, complete and not cut off."""
    from safetensors import SafetensorError, safe_open

    index = root / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        file = root / name
        if not file.exists():
            pickles = sorted(p.name for p in root.glob("*.bin"))
            more = f"; {pickles[0]} is a pickle, which is not loaded" if pickles else ""
            raise CheckpointError(f"{file}: no such file{more}")
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise CheckpointError(f"{file}: is no complete safetensors file: {error}") from error


def _check_loaded(root: Path, info: dict[str, Any]) -> None:
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(_describe_key(key) for key in info.get(what, ()))
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise CheckpointError(f"{root}: {what.replace('_', ' ')}: {shown}")


def _describe_key(key: Any) -> str:
    """A key, or with its shapes: (key, in the file, in the model)."""
    if isinstance(key, str):
        return key
    name, found, expected = key
    return f"{name} is {list(found)}, expected {list(expected)}"
