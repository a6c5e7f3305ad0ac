"""Weights kept in fewer bits than they are computed in: what transformers is told, and who cannot.

The linear layers are quantised as they load; embeddings and the head keep their type.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers

from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.family import Family
from vdiff_grpc.errors import CheckpointError

NONE = "none"

# What must be installed for each; on a GPU transformers wants accelerate too.
PACKAGES = {
    "torchao-int8": ("torchao",),
    "torchao-int4": ("torchao", "mslk"),
    "bitsandbytes-8bit": ("bitsandbytes", "accelerate"),
    "bitsandbytes-4bit": ("bitsandbytes", "accelerate"),
}
_GPU_ONLY = ("torchao-int4",)


def check(
    name: str,
    config: Config,
    family: Family,
    device: torch.device,
    dtype: torch.dtype,
    *,
    has_experts: bool,
) -> None:
    """Whether the weights can be kept so. Raises CheckpointError with the reason."""
    begin = f"{config.path}: quantization is {name}: "
    if name not in PACKAGES:
        raise CheckpointError(f"{begin}known are {', '.join((NONE, *PACKAGES))}")
    if family.network is not None or has_experts:
        what = (
            "rows computed one by one" if family.network else "experts, which are no linear layers"
        )
        raise CheckpointError(f"{begin}models of the family {family.name} have {what}")
    wanted = {*PACKAGES[name], *(["accelerate"] if device.type != "cpu" else [])}
    missing = sorted(package for package in wanted if not importlib.util.find_spec(package))
    if missing:
        raise CheckpointError(f"{begin}not installed: {', '.join(missing)}")
    if name in _GPU_ONLY and (device.type != "cuda" or dtype is not torch.bfloat16):
        raise CheckpointError(
            f"{begin}it computes in bfloat16 on cuda only, not in "
            f"{str(dtype).removeprefix('torch.')} on {device.type}"
        )
    if device.type == "mps":
        raise CheckpointError(f"{begin}it computes on cuda and cpu, not on mps")


def loading_options(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told."""
    if name.startswith("torchao"):
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        kind = Int8WeightOnlyConfig if name == "torchao-int8" else Int4WeightOnlyConfig
        told: Any = transformers.TorchAoConfig(kind())
    elif name == "bitsandbytes-8bit":
        # Without a threshold: columns that hold outliers would be told by all rows of a step.
        told = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        told = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    options = {"quantization_config": told}
    if device.type != "cpu" or "accelerate" in PACKAGES[name]:
        options["device_map"] = {"": device}
    return options
