"""Puts an engine together: memory, the shape of a step, the model beside it, limits."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from vdiff_grpc.engine.auxiliary import Auxiliary
from vdiff_grpc.engine.cache_checks import auxiliary_tokens
from vdiff_grpc.engine.caches.kinds import page_tokens
from vdiff_grpc.engine.models import compiling, loader
from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.engine.models.registry import find_family
from vdiff_grpc.engine.packing import FILLER_LENGTH, Fill
from vdiff_grpc.engine.reservations import Reservations
from vdiff_grpc.engine.rng import Noise
from vdiff_grpc.engine.runner import Runner
from vdiff_grpc.engine.scheduler import Scheduler
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import EngineConfig, EngineLimits, ModelInfo

logger = logging.getLogger(__name__)


def assemble(
    config: EngineConfig,
    info: ModelInfo,
    limits: EngineLimits,
    tokenizer: Tokenizer | None,
    model: loader.LoadedModel,
    noise: Noise | None,
) -> tuple[Runner, Scheduler]:
    """With memory reserved for all keys and values that can be kept. Raises CheckpointError."""
    if config.compile:
        compiling.compile_layers(model, config, find_family(Config.read(Path(info.path))))
    kept = limits.max_cache_tokens
    model = model.reserving(kept)
    fill = _fill(config, limits, info.max_positions, model)
    auxiliary, beside = None, auxiliary_tokens(config, info, limits.max_canvas_tokens)
    if config.aux_model_path:
        other = loader.load(config.aux_model_path, config.device, config.dtype)
        fitting = _fill(config, limits, info.auxiliary_positions, other)
        auxiliary = Auxiliary(other.reserving(beside), fitting, limits.max_step_tokens)
    runner = Runner(model, info, banned_ids(model, info, tokenizer), noise, fill, auxiliary)
    scheduler = Scheduler(
        limits.max_running_rows,
        limits.max_waiting_rows,
        limits.max_step_tokens,
        limits.max_prompt_step_tokens,
        Reservations.of_tokens(
            kept, page_tokens(info.block_length), beside, shares=config.share_prompts
        ),
        config.target_step_tokens,
    )
    return runner, scheduler


def banned_ids(
    model: loader.LoadedModel, info: ModelInfo, tokenizer: Tokenizer | None
) -> list[int]:
    """The mask, ids that the checkpoint suppresses, and ids that stand for no token."""
    defined = set(range(info.vocab_size))
    if tokenizer is not None:
        defined &= tokenizer.defined_ids
    defined -= {info.blank_id, *info.suppressed_ids}
    return [i for i in range(model.vocab_width) if i not in defined]


def _fill(
    config: EngineConfig, limits: EngineLimits, positions: int, model: loader.LoadedModel
) -> Fill:
    """The shape of a step: constant on request, else as small as the promise allows.

    On CPU with several threads attention splits a batch of segments otherwise than one.
    positions: that the model knows. Raises CheckpointError: see LoadedModel.backends.
    """
    backends = model.backends(config.attention, batch_invariant=config.batch_invariant)
    logger.info("attention on %s: %s", model.device, ", then ".join(backends))
    filler = min(FILLER_LENGTH, positions)
    if config.batch_invariant:
        step = limits.max_step_tokens
        return Fill(step, step, filler_length=filler, merge=False, backends=backends)
    alone = model.device.type == "cpu" and torch.get_num_threads() > 1
    return Fill(filler_length=filler, merge=not alone, backends=backends)
