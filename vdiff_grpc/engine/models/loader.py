"""Loads a checkpoint's weights into the transformers class of its family."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from vdiff_grpc.engine import attention
from vdiff_grpc.engine.attention import FULL, AttentionLayout
from vdiff_grpc.engine.caches.key_values import KeyValues, Measure, Window
from vdiff_grpc.engine.exact import ROWS
from vdiff_grpc.engine.kernels.registry import Place, choose
from vdiff_grpc.engine.models import probe, quantization, sharding, weights
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.family import Family
from vdiff_grpc.engine.models.registry import find_family
from vdiff_grpc.engine.models.sharding import Group
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device.

    position_offset: what the network calls position 0.
    head: modules that make logits of hidden states; empty when the network does it itself.
    memory: of keys and values; None before `reserve`, and where nothing is kept.
    """

    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    position_offset: int = 0
    head: tuple[nn.Module, ...] = ()
    memory: KeyValues | Measure | None = None

    def reserving(self, num_slots: int) -> LoadedModel:
        """With a memory for the keys and values of so many tokens. Raises CheckpointError."""
        if not num_slots:
            return self
        tokens = torch.zeros(ROWS, dtype=torch.int64, device=self.device)
        nothing = Window(*np.zeros((2, 0), dtype=np.int64))
        layout = AttentionLayout.of_lengths([ROWS], [FULL], [nothing])
        measure = Measure()
        measuring = dataclasses.replace(self, memory=measure)
        LoadedModel.logits(measuring, tokens, tokens, layout, tokens)
        try:
            memory = KeyValues(measure.layers, num_slots, self.dtype, self.device)
        except (RuntimeError, MemoryError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(
                f"no memory for the keys and values of {num_slots} tokens (cache_tokens): {first}"
            ) from error
        return dataclasses.replace(self, memory=memory)

    @property
    def vocab_width(self) -> int:
        """Columns of the logits; may be more than the vocabulary."""
        embeddings: nn.Embedding = self.network.get_input_embeddings()  # type: ignore[operator]
        return embeddings.num_embeddings

    def backends(self, wanted: str, *, batch_invariant: bool) -> tuple[str, ...]:
        """Of attention, as in Segments. Raises CheckpointError where `wanted` does not work."""
        config: Any = self.network.config
        heads = config.num_attention_heads
        place = Place(
            self.device,
            self.dtype,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            batch_invariant,
        )
        return choose(wanted, place)

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, position_ids: Tensor, layout: AttentionLayout, head: Tensor
    ) -> Tensor:
        """[num_head, vocab_size] float32.

        token_ids, position_ids: [num_tokens] int64, packed; head: [num_head] indices into them.
        """
        given: dict[str, Any] = {
            "input_ids": token_ids.unsqueeze(0),
            "position_ids": position_ids.unsqueeze(0) + self.position_offset,
            "layout": layout,
            "memory": self.memory,
        }
        if not self.head:
            output = self.network(**given, logits_to_keep=head, use_cache=False)
            logits: Tensor = output.logits[0]
            return logits.float()
        hidden: Tensor = self.network.base_model(**given).last_hidden_state[0, head]  # type: ignore[operator]
        for module in self.head:
            hidden = module(hidden)
        return hidden.float()

    def close(self) -> None:
        """Ends what the model has running besides this process."""


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


def check_split(path: str, size: int) -> None:
    """Whether a model can be split over so many processes. Reads its config, no weights.

    Raises CheckpointError.
    """
    config = Config.read(Path(path))
    family = find_family(config)
    if family.unsplit:
        raise CheckpointError(
            f"{path}: tensor_parallel_size is {size}: models of the family {family.name} are not "
            f"split: {family.unsplit}"
        )
    if family.attention is AttentionPattern.CAUSAL:
        kind = probe.find_class(family.transformers_class, config)
    else:
        kind = getattr(transformers, family.transformers_class)
    sharding.check(kind, _native_config(config, family), config, size)


def load(
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    quantized: str = quantization.NONE,
    group: Group | None = None,
) -> LoadedModel:
    """quantized: how weights are kept, by the names of `quantization`.

    group: of the processes that hold the model's parts; None: this one holds all of it.
    Raises CheckpointError naming the file and the key; never leaves a weight to chance.
    """
    config = Config.read(Path(path))
    family = find_family(config)
    target = choose_device(device)
    kind = choose_dtype(dtype, target)
    attention.register()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it reports, _check_loaded raises
    is_causal = family.attention is AttentionPattern.CAUSAL
    if is_causal:
        network_class = probe.find_class(family.transformers_class, config)
    else:
        network_class = getattr(transformers, family.transformers_class)
    native = _native_config(config, family)
    if is_causal:
        probe.check_class(network_class, native, config)
    options: dict[str, Any] = {}
    if group is not None:
        options = group.loading_options()
    elif quantized != quantization.NONE:
        experts = _has_experts(network_class, family)
        quantization.check(quantized, config, family, target, kind, has_experts=experts)
        options = quantization.loading_options(quantized, target, kind)
    network = _load(config, family, network_class, native, kind, options)
    if group is not None:
        group.settle(network)
    try:
        network.eval().requires_grad_(False)
        if "device_map" not in options:
            network.to(target)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: the weights do not go to {target}: {first}") from error
    if is_causal:
        probe.check_network(network, config)
    model_class = family.network() if family.network else LoadedModel
    return model_class(
        network,
        target,
        kind,
        family.position_offset(config),
        tuple(_module(network, name) for name in family.head),
    )


def _native_config(config: Config, family: Family) -> Any:
    """The transformers config object."""
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{config.path}: quantization_config: quantised weights are not loaded"
        )
    if family.transformers_config:
        config_class = getattr(transformers, family.transformers_config)
    else:
        config_class = transformers.CONFIG_MAPPING[config["model_type"]]
    try:
        return config_class(**family.to_config(config))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{config.path}: {type(error).__name__}: {error}") from error
    except StrictDataclassError as error:
        # its words begin with the key: "Validation error for field 'hidden_size': ..."
        words = " ".join(str(error).split())
        raise CheckpointError(f"{config.path}: {words}") from error


def _load(
    config: Config,
    family: Family,
    network_class: Any,
    native: Any,
    kind: torch.dtype,
    options: dict[str, Any],
) -> Any:
    """The network with all of its weights, on the CPU unless the options say otherwise."""
    keys = weights.check_files(config.root, family.ignored_keys)
    if _has_experts(network_class, family):
        from vdiff_grpc.engine.models import experts  # of no use to a network without them

        experts.register()
        options = {**options, "experts_implementation": experts.BACKEND}
        if missing := experts.missing_keys(keys):  # merging would fail without a name
            raise CheckpointError(_told(config.root, "missing_keys", list(missing)))
    family.prepare()
    own = "sdpa" if family.network else attention.BACKEND
    try:
        network, info = network_class.from_pretrained(
            str(config.root),
            config=native,
            key_mapping=dict(family.key_mapping),
            dtype=kind,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation=own,
            ignore_mismatched_sizes=True,  # told by _check_loaded, with the shapes
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, ValueError, LookupError, SafetensorError) as error:
        raise CheckpointError(
            f"{weights.name_of_all(config.root)}: the weights cannot be loaded: {error}"
        ) from error
    _check_loaded(config.root, family, info, keys)
    return network


def _has_experts(network_class: Any, family: Family) -> bool:
    mixed = network_class._can_set_experts_implementation() and not family.network
    return family.mixture_of_experts or mixed


def _module(network: nn.Module, name: str) -> nn.Module:
    """A module by its name; some classes keep a bare function there."""
    found = getattr(network, name)
    return found if isinstance(found, nn.Module) else _Applied(found)


class _Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.function(values)
        return result


def _check_loaded(root: Path, family: Family, info: dict[str, Any], keys: dict[str, Path]) -> None:
    """Everything in the files has its place, everything in the network its weight."""
    ignored = re.compile("|".join(family.ignored_keys)) if family.ignored_keys else None
    origin = {_renamed(key, family): key for key in keys}

    def describe(entry: Any) -> str:
        """A key, its shapes where they differ, and the file it comes from."""
        key, shapes = entry, ""
        if not isinstance(entry, str):
            key, found, expected = entry
            shapes = f" is {list(found)}, expected {list(expected)}"
        held = key if key in keys else origin.get(key, "")
        where = f" ({keys[held].name}: {held})" if held else ""
        return f"{key}{shapes}{where}"

    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        entries = [
            entry
            for entry in info.get(what, ())
            if not (what == "unexpected_keys" and ignored and ignored.search(entry))
        ]
        if entries:
            raise CheckpointError(_told(root, what, [describe(entry) for entry in entries]))
    if info.get("error_msgs"):
        raise CheckpointError(f"{weights.name_of_all(root)}: {info['error_msgs'][0]}")


def _told(root: Path, what: str, entries: list[str]) -> str:
    """The first five of what is wrong, and the file."""
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    shown = ", ".join(sorted(entries)[:5])
    return f"{weights.name_of_all(root)}: {what.replace('_', ' ')}: {shown}{more}"


def _renamed(key: str, family: Family) -> str:
    for pattern, replacement in family.key_mapping.items():
        key = re.sub(pattern, replacement, key)
    return key
