"""What is known of the model before its weights are loaded, and the sums of its counters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vdiff_grpc.engine import validation
from vdiff_grpc.engine.constraint_checks import compiler_for
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.models import registry
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import (
    EngineConfig,
    EngineLimits,
    ModelInfo,
    SamplingParams,
    Statistics,
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """defaults: what a request gets that says nothing, but for its seed. compiler: of constraints."""

    info: ModelInfo
    limits: EngineLimits
    tokenizer: Tokenizer | None
    defaults: SamplingParams
    compiler: Compiler

    @classmethod
    def read(cls, config: EngineConfig) -> ServedModel:
        """Raises CheckpointError."""
        name = config.served_names[0] if config.served_names else ""
        info = registry.describe(config.model_path, name, config.aux_model_path)
        limits = validation.limits_for(config, info)
        tokenizer = Tokenizer.load(config.model_path)
        defaults = validation.defaults(info, limits)
        return cls(info, limits, tokenizer, defaults, compiler_for(info, tokenizer))


def total(one: Statistics, other: Statistics) -> Statistics:
    return Statistics(
        *(
            getattr(one, counter.name) + getattr(other, counter.name)
            for counter in dataclasses.fields(Statistics)
        )
    )
