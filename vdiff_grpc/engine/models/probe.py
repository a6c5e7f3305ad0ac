"""Whether a causal model's class can be served: looked at, and tried on a few tokens.

Any class of transformers may turn up here, and some do what packed rows cannot: keep a state from
token to token, take in the mask what others take as an argument, look ahead. The answer is found
by computing a short text in the class's own way and in ours.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor

from vdiff_grpc.engine import attention
from vdiff_grpc.engine.attention import AttentionLayout
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.errors import CheckpointError

# Kinds of layers that attend, and do nothing else, from token to token.
_LAYER_TYPES = {"full_attention", "sliding_attention"}

# What changes an attention's result and is not computed here, if the config gives it a value.
_REFUSED = ("attn_logit_softcapping", "attention_chunk_size", "alibi", "use_alibi")

_LENGTH = 8  # tokens of a trial
_TOLERANCE = 0.05  # root mean square, relative; bfloat16 stays below 0.02


def find_class(name: str, config: Config) -> Any:
    """A causal model's class in transformers. Raises CheckpointError when there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    model_type = config.get("model_type")
    names = KNOWN.get(model_type, ()) if isinstance(model_type, str) else ()
    if name not in ((names,) if isinstance(names, str) else names):
        own_code = "; its own code (auto_map) is never run" if "auto_map" in config else ""
        raise CheckpointError(
            f"{config.path}: model_type {model_type!r}, architecture {name!r} is no causal "
            f"language model of transformers {transformers.__version__}{own_code}"
        )
    return getattr(transformers, name)


def check_class(kind: Any, native: Any, config: Config) -> None:
    """What the class and its config tell. Raises CheckpointError."""
    refused = ""
    if not kind._supports_attention_backend:
        refused = "its attention cannot be exchanged"
    elif kind._is_stateful:
        refused = "it keeps a state besides keys and values"
    elif "logits_to_keep" not in inspect.signature(kind.forward).parameters:
        refused = "it computes logits of every position"
    else:
        others = set(getattr(native, "layer_types", None) or ()) - _LAYER_TYPES
        if others:
            refused = f"it has layers of the type {', '.join(sorted(others))}"
        for key in _REFUSED:
            if getattr(native, key, None):
                refused = f"{key} is {getattr(native, key)!r}, which is not computed here"
    if refused:
        raise CheckpointError(f"{config.path}: {kind.__name__} cannot be served: {refused}")


@torch.inference_mode()
def check_network(network: Any, config: Config) -> None:
    """Our packed rows against the class's own way, on two short texts. Raises CheckpointError."""
    name = type(network).__name__
    width = network.get_input_embeddings().num_embeddings
    ids = (torch.arange(2 * _LENGTH, device=network.device) * 7919 + 11) % width
    try:
        ours = _packed(network, ids)
        native = torch.cat([_native(network, part) for part in ids.split(_LENGTH)])
    except Exception as error:  # a class that does not fit may fail in any way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{config.path}: {name} cannot be served: {first}") from error
    spread = native.std(dim=-1).mean()
    difference = (ours - native).square().mean().sqrt() / spread.clamp_min(1e-6)
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{config.path}: {name} cannot be served: its own attention and ours differ by "
            f"{float(difference):.2g} of the logits' spread"
        )


def _packed(network: Any, ids: Tensor) -> Tensor:
    """Logits [2 * _LENGTH, vocab] of two texts in one packed row."""
    layout = AttentionLayout.of_lengths([_LENGTH] * 2, [attention.CAUSAL] * 2)
    positions = torch.arange(_LENGTH, device=ids.device).repeat(2)
    output = network(
        input_ids=ids[None], position_ids=positions[None], layout=layout, use_cache=False
    )
    logits: Tensor = output.logits[0]
    return logits.float()


def _native(network: Any, ids: Tensor) -> Tensor:
    """Logits [_LENGTH, vocab] of one text, with an attention of transformers."""
    network.set_attn_implementation("eager")
    try:
        logits: Tensor = network(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        network.set_attn_implementation(attention.BACKEND)
    return logits.float()
