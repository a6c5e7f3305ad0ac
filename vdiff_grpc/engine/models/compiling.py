"""Compiles a network layer by layer with torch.compile. Attention stays as it is.

The layers of a network are alike, so that one is compiled for all, for any number of tokens; ragged
attention is a call between two compiled parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from vdiff_grpc.engine import attention
from vdiff_grpc.engine.models.family import Family
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.engine.models.quantization import NONE
from vdiff_grpc.engine.types import EngineConfig
from vdiff_grpc.errors import CheckpointError


def compile_layers(model: LoadedModel, config: EngineConfig, family: Family) -> None:
    """In place; the compiler runs at the first passes. Raises CheckpointError where it cannot be."""
    layers = getattr(model.network.base_model, "layers", None)
    why = ""
    if config.quantization != NONE:
        why = f"quantization is {config.quantization}"
    elif family.mixture_of_experts or family.network is not None:
        why = f"models of the family {family.name} have experts or compute row by row"
    elif not isinstance(layers, nn.ModuleList):
        why = f"{type(model.network).__name__} has no list of layers"
    if why:
        raise CheckpointError(f"compile is on: {why}; it is for one process and dense networks")
    assert isinstance(layers, nn.ModuleList)
    eager: Any = torch.compiler.disable(attention.ragged_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.BACKEND, eager)
    for layer in layers:
        layer.compile(dynamic=True)
