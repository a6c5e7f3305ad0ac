"""Which family a checkpoint belongs to, and what its config files say. Loads no torch.

To add a family: one file beside this one with a `FAMILY`, and a row in `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from vdiff_grpc.engine.caches.kinds import APPROXIMATE, CacheKind
from vdiff_grpc.engine.models import causal_lm, masked_lm
from vdiff_grpc.engine.models.checkpoint import (
    Config,
    fits_vocabulary,
    generation_config,
    generation_ids,
    read_json,
)
from vdiff_grpc.engine.models.diffusion_gemma import FAMILY as DIFFUSION_GEMMA
from vdiff_grpc.engine.models.dream import FAMILY as DREAM
from vdiff_grpc.engine.models.family import Family
from vdiff_grpc.engine.models.llada import FAMILY as LLADA
from vdiff_grpc.engine.models.llada2 import FAMILY as LLADA2
from vdiff_grpc.engine.models.llada_moe import FAMILY as LLADA_MOE
from vdiff_grpc.engine.models.sdar import FAMILY as SDAR
from vdiff_grpc.engine.strategies import AdaptiveParallel
from vdiff_grpc.engine.types import AttentionPattern, GrowthTokens, ModelInfo
from vdiff_grpc.errors import CheckpointError

__all__ = ["FAMILIES", "describe", "find_family", "fingerprint", "read_json"]

FAMILIES: tuple[Family, ...] = (
    LLADA,
    LLADA_MOE,
    LLADA2,
    DREAM,
    SDAR,
    DIFFUSION_GEMMA,
    *masked_lm.FAMILIES,
)

# Keys of config.json that only a diffusion model has.
_DIFFUSION_KEYS = ("mask_token_id", "diffusion_steps", "canvas_length", "block_size")

_SAMPLE_BYTES = 1 << 20


def find_family(config: Config) -> Family:
    """The family of a checkpoint: by name, or as a causal language model.

    A diffusion model of a kind that is not known is never taken for a causal one, and a mask
    token of a tokenizer says nothing. Code of the checkpoint (`auto_map`) is never run.
    Raises CheckpointError with what was found and what is supported.
    """
    model_type = config.get("model_type")
    architectures = _architectures(config)
    for family in FAMILIES:
        if model_type in family.model_types or set(architectures) & set(family.architectures):
            return family
    attributes = [
        f"{key} {config[key]!r}" for key in _DIFFUSION_KEYS if config.get(key) is not None
    ]
    causal = [name for name in architectures if causal_lm.is_causal(name)]
    if causal and not attributes:
        return causal_lm.family_of(causal[0])
    kind = "no model that can be served here"
    if attributes:
        kind = f"a diffusion model of an unknown kind ({', '.join(attributes)})"
    elif any(name.endswith("ForMaskedLM") for name in architectures):
        kind = "a masked language model of an unknown kind"
    own_code = "; its own code (auto_map) is never run" if "auto_map" in config else ""
    raise CheckpointError(
        f"{config.path}: model_type {model_type!r}, architectures {architectures!r} is {kind}"
        f"{own_code}; supported: {_supported()}"
    )


def describe(path: str, name: str = "", aux_path: str = "") -> ModelInfo:
    """Reads a checkpoint's config files, not its weights.

    name: the id under which it is served; the folder's name when empty.
    aux_path: the checkpoint of the autoregressive model beside it; it must be a causal language
    model with the same vocabulary.
    Raises CheckpointError naming the file and what was expected.
    """
    root = Path(path)
    if not root.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; expected a checkpoint in Hugging Face layout"
        )
    config = Config.read(root)
    info = _describe(config, find_family(config), name or root.resolve().name)
    if aux_path:
        other = _auxiliary(info, aux_path)
        return dataclasses.replace(
            info, auxiliary=other.name, auxiliary_positions=other.max_positions
        )
    alone = tuple(name for name in info.strategies if name != AdaptiveParallel.NAME)
    return dataclasses.replace(info, strategies=alone)


def fingerprint(root: Path) -> str:
    """Twelve hex digits that change with the checkpoint.

    Over every JSON file, and of every weight file its size, first and last MiB: hashing
    all of a 16 GB checkpoint would cost as much as loading it.
    """
    digest = hashlib.sha256()
    for file in sorted([*root.glob("*.json"), *root.glob("*.safetensors")]):
        try:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as stream:
                if file.suffix == ".json":
                    digest.update(stream.read())
                    continue
                digest.update(stream.read(_SAMPLE_BYTES))
                stream.seek(max(size - _SAMPLE_BYTES, 0))
                digest.update(stream.read(_SAMPLE_BYTES))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from error
    return digest.hexdigest()[:12]


def _describe(config: Config, family: Family, name: str) -> ModelInfo:
    generation = generation_config(config.root)
    before, after = config.frame()
    vocab_size = family.vocab_size(config)
    suppressed = generation_ids(config.root, "suppress_tokens")
    if family.suppressed_ids is not None:
        suppressed += family.suppressed_ids(config)
    info = ModelInfo(
        name=name,
        path=str(config.root),
        family=family.name,
        revision=fingerprint(config.root),
        attention=family.attention,
        vocab_size=vocab_size,
        max_positions=family.max_positions(config),
        mask_token_id=family.mask_token_id(config),
        end_token_ids=_inside(_end_token_ids(config, family), vocab_size),
        supports_infill=family.supports_infill,
        strategies=family.strategies,
        default_strategy=family.strategy_of(config)
        if family.strategy_of
        else family.default_strategy,
        default_temperature=_temperature(generation, config.root, family.default_temperature),
        suppressed_ids=_inside(suppressed, vocab_size),
        shift=family.shift,
        block_length=family.block_length(config),
        prefix_ids=before,
        suffix_ids=after if family.encloses_text else (),
        caches=family.caches or _caches(family.attention),
        growth=family.growth(config),
    )
    _check_ids(info, config)
    return info


def _caches(attention: AttentionPattern) -> tuple[CacheKind, ...]:
    """Where nothing before sees what is settled, it is kept: there is no reason not to."""
    if attention is AttentionPattern.FULL:
        return (CacheKind.NONE, *APPROXIMATE)
    return (CacheKind.SETTLED,)


def _architectures(config: Config) -> list[str]:
    found = config.get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(
            f"{config.path}: architectures is {found!r}; expected a list of names"
        )
    return found


def _supported() -> str:
    names = [name for family in FAMILIES for name in (family.model_types or family.architectures)]
    return f"{', '.join(names)}, and causal language models of transformers' own classes"


def _inside(ids: list[int], vocab_size: int) -> tuple[int, ...]:
    """Each once. An id beyond the vocabulary, often a config's default, is never drawn."""
    return tuple(i for i in dict.fromkeys(ids) if 0 <= i < vocab_size)


def _end_token_ids(config: Config, family: Family) -> list[int]:
    """End ids of the generation config, the config, the tokenizer, and the family's own tokens."""
    if family.end_token_ids is not None:
        return family.end_token_ids(config)
    found = generation_ids(config.root, "eos_token_id") + config.integers("eos_token_id")
    found += [i for role, i in config.special_ids.items() if role == "eos_token"]
    found += config.added_token_ids(family.end_token_names)
    return found


def _temperature(generation: dict[str, Any], root: Path, default: float) -> float:
    """The temperature that the checkpoint asks for, `default` where it asks for none."""
    if generation.get("do_sample") is False:
        return 0.0
    value = generation.get("temperature")
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CheckpointError(
            f"{root / 'generation_config.json'}: temperature is {value!r}; expected a number"
        )
    return float(value)


def _ids_of(growth: GrowthTokens) -> tuple[int, ...]:
    return (growth.expand, growth.delete, *growth.before, *growth.after)


def _check_ids(info: ModelInfo, config: Config) -> None:
    """Ids beyond the vocabulary would be drawn from, or looked up, where nothing is."""
    for what, ids in (
        ("mask_token_id", () if info.mask_token_id is None else (info.mask_token_id,)),
        ("the tokenizer's mark of a text", info.prefix_ids + info.suffix_ids),
        ("expand or delete token", () if info.growth is None else _ids_of(info.growth)),
    ):
        for token in ids:
            if not 0 <= token < info.vocab_size:
                raise CheckpointError(
                    f"{config.path}: {what} ({token}) is not in the vocabulary of {info.vocab_size}"
                )
    for what, number in (("vocab_size", info.vocab_size), ("max positions", info.max_positions)):
        if number < 2:
            raise CheckpointError(f"{config.path}: {what} is {number}; expected at least 2")
    if info.block_length is not None and info.block_length < 1:
        raise CheckpointError(f"{config.path}: the block length is {info.block_length}")


def _auxiliary(info: ModelInfo, path: str) -> ModelInfo:
    """What lies there, once it is known to fit."""
    other = describe(path)
    if other.attention is not AttentionPattern.CAUSAL:
        raise CheckpointError(
            f"{path}: an auxiliary model is a causal language model, not one of the family "
            f"{other.family}"
        )
    roots = Path(info.path), Path(path)
    if all((root / "tokenizer.json").exists() for root in roots):
        fits = fits_vocabulary(*roots, other.vocab_size)
    else:
        fits = other.vocab_size == info.vocab_size
    if not fits:
        raise CheckpointError(
            f"{path}: the auxiliary model's vocabulary ({other.vocab_size}) is not that of "
            f"{info.name} ({info.vocab_size}): both must give the same ids to the same tokens"
        )
    return other
