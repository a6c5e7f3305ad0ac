"""DiffusionGemma: canvases of fixed length that are denoised from random tokens, one by one.

There is no mask: what is not accepted yet is noise. The prompt and finished canvases are read
causally, once; a canvas sees them and all of itself. Only the text part is served.

Source: transformers 5.23 models/diffusion_gemma (configuration, modeling, generation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdiff_grpc.engine.models.checkpoint import generation_config, generation_ids
from vdiff_grpc.engine.models.family import Config, Family
from vdiff_grpc.engine.strategies import Strategy, UniformNoise
from vdiff_grpc.engine.types import AttentionPattern
from vdiff_grpc.errors import CheckpointError

if TYPE_CHECKING:
    from vdiff_grpc.engine.models.loader import LoadedModel

_SAMPLER = "EntropyBoundSamplerConfig"
# Keys that name the class and the file, not the model.
_ABOUT_THE_FILE = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version")


def _to_config(config: Config) -> dict[str, Any]:
    _text(config)
    return {key: value for key, value in config.items() if key not in _ABOUT_THE_FILE}


def _text(config: Config) -> Config:
    text = config["text_config"]
    if not isinstance(text, dict):
        raise CheckpointError(f"{config.path}: text_config is {text!r}; expected an object")
    return Config(text, config.root)


def _vocab_size(config: Config) -> int:
    return _text(config).integer("vocab_size")


def _max_positions(config: Config) -> int:
    return _text(config).integer("max_position_embeddings")


def _canvas_length(config: Config) -> int:
    return config.integer("canvas_length")


def _no_mask(_: Config) -> None:
    return None


def _end_token_ids(config: Config) -> list[int]:
    found = generation_ids(config.root, "eos_token_id")
    return found or _text(config).integers("eos_token_id")


def _strategy(config: Config) -> Strategy:
    """The sampler's parameters by the checkpoint's own word; the rest stays open."""
    generation = generation_config(config.root)
    where = f"{config.root / 'generation_config.json'}: "
    sampler = generation.get("sampler_config") or {}
    if sampler.get("_cls_name", _SAMPLER) != _SAMPLER:
        raise CheckpointError(
            f"{where}the sampler {sampler['_cls_name']!r} is not served, only {_SAMPLER}"
        )
    found: dict[str, Any] = {"entropy_bound": sampler.get("entropy_bound")}
    for name in UniformNoise.ranges():
        found.setdefault(name, generation.get(name))
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise CheckpointError(f"{where}{name} is {value!r}; expected a number")
    return UniformNoise(**found)


def _network() -> type[LoadedModel]:
    from vdiff_grpc.engine.models.diffusion_gemma_network import DiffusionGemmaModel

    return DiffusionGemmaModel


FAMILY = Family(
    name="diffusion_gemma",
    unsplit="their rows are computed one by one",
    model_types=("diffusion_gemma",),
    architectures=("DiffusionGemmaForBlockDiffusion",),
    transformers_class="DiffusionGemmaForBlockDiffusion",
    transformers_config="DiffusionGemmaConfig",
    to_config=_to_config,
    key_mapping={},
    attention=AttentionPattern.CANVAS,
    vocab_size=_vocab_size,
    max_positions=_max_positions,
    mask_token_id=_no_mask,
    supports_infill=False,
    strategies=(UniformNoise.NAME,),
    default_strategy=UniformNoise(),
    strategy_of=_strategy,
    default_temperature=1.0,
    block_length=_canvas_length,
    end_token_ids=_end_token_ids,
    network=_network,
)
