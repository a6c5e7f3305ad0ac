"""The decoding strategies and their parameters, as a caller sets them. Knows no torch.

A class per case of the contract's `DiffusionParams.strategy`, with the case's name and the fields
of its message. None, whatever a field's type: the caller said nothing; `resolved` fills in the
default that stands beside the field's range, and then every field is of its type. Validation, conversion and the defaults read these tables, so that a strategy's
parameters are written down here and in the contract only.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar


class Remasking(enum.Enum):
    """Which positions a fixed schedule keeps first."""

    LOW_CONFIDENCE = "low_confidence"
    RANDOM = "random"


class DreamOrder(enum.Enum):
    """Which positions Dream's schedule fills first; the names are those of its `alg`."""

    ENTROPY = "entropy"
    MASKGIT_PLUS = "maskgit_plus"
    TOPK_MARGIN = "topk_margin"
    ORIGIN = "origin"


class RemdmMode(enum.Enum):
    """How ReMDM chooses the probability of masking a position again."""

    CAP = "cap"
    RESCALE = "rescale"
    CONF = "conf"
    LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Range:
    """What a parameter may be, and what it is when nothing is said."""

    default: Any
    low: float = 0.0
    high: float = 1.0
    open_low: bool = False


def _number(default: float, low: float, high: float, *, open_low: bool = False) -> Any:
    return field(default=None, metadata={"range": Range(default, low, high, open_low)})


def _choice(default: enum.Enum) -> Any:
    return field(default=None, metadata={"range": Range(default)})


@dataclass(frozen=True, slots=True)
class Strategy:
    """How positions are chosen.

    NAME: the contract's case. HAS_STEPS: `diffusion.steps` means something to it.
    SPARE_STEPS: there may be more of them than positions.
    REVOCABLE: what it has filled may change until its block is left.
    HURRIES: it can be made to fill more in a step than it would.
    GROWS: it asks nothing of the step before, so that positions may come and go.
    """

    NAME: ClassVar[str] = ""
    HAS_STEPS: ClassVar[bool] = False
    SPARE_STEPS: ClassVar[bool] = False
    REVOCABLE: ClassVar[bool] = False
    HURRIES: ClassVar[bool] = False
    GROWS: ClassVar[bool] = False

    def step_tokens(self, length: int, block_length: int) -> int:
        """Most tokens that one step of a canvas of `length` computes, guidance aside."""
        return length

    def most_changes(self, positions: int, block_length: int, steps: int | None) -> int:
        """Most changes of positions until all of them are filled; steps: over all blocks."""
        assert not self.REVOCABLE, "what can be changed again is counted by the strategy itself"
        return positions

    @classmethod
    def ranges(cls) -> dict[str, Range]:
        """Each parameter's range, by name."""
        return {f.name: f.metadata["range"] for f in dataclasses.fields(cls)}

    def resolved(self) -> Strategy:
        """With the defaults filled in."""
        missing = {
            name: given.default
            for name, given in self.ranges().items()
            if getattr(self, name) is None
        }
        return dataclasses.replace(self, **missing)


@dataclass(frozen=True, slots=True)
class FixedSchedule(Strategy):
    """LLaDA: an even share of the block's masks at every step."""

    NAME = "fixed_schedule"
    HURRIES = True
    GROWS = True
    HAS_STEPS = True
    remasking: Remasking = _choice(Remasking.LOW_CONFIDENCE)


@dataclass(frozen=True, slots=True)
class DreamSchedule(Strategy):
    """Dream: a share that follows t from 1 to 1e-3, in one of four orders."""

    NAME = "dream_schedule"
    HURRIES = True
    GROWS = True
    HAS_STEPS = True
    order: DreamOrder = _choice(DreamOrder.ENTROPY)
    order_temperature: float = _number(0.0, 0.0, 100.0)


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold(Strategy):
    """Fast-dLLM: all predictions at least this confident."""

    NAME = "confidence_threshold"
    HURRIES = True
    GROWS = True
    threshold: float = _number(0.9, 0.0, 1.0, open_low=True)


@dataclass(frozen=True, slots=True)
class Factor(Strategy):
    """Fast-dLLM: the n most confident while the n-th is at least 1 - factor / (n + 1)."""

    NAME = "factor"
    HURRIES = True
    GROWS = True
    factor: float = _number(1.0, 0.0, 1000.0, open_low=True)


@dataclass(frozen=True, slots=True)
class DynamicThreshold(Strategy):
    """SDAR: all above the threshold if they are as many as the schedule asks, else its share."""

    NAME = "dynamic_threshold"
    HURRIES = True
    GROWS = True
    HAS_STEPS = True
    threshold: float = _number(0.85, 0.0, 1.0, open_low=True)


@dataclass(frozen=True, slots=True)
class EntropyBound(Strategy):
    """EB: in order of rising entropy while the sum without the largest stays in the bound, nats."""

    NAME = "entropy_bound"
    HURRIES = True
    GROWS = True
    bound: float = _number(0.1, 0.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Klass(Strategy):
    """KLASS: confident predictions whose distribution has come to rest; else the schedule's share."""

    NAME = "klass"
    HURRIES = True
    HAS_STEPS = True
    threshold: float = _number(0.9, 0.0, 1.0)
    kl_threshold: float = _number(0.01, 0.0, 100.0)
    history: int = _number(2, 1, 8)


@dataclass(frozen=True, slots=True)
class LocalLeap(Strategy):
    """LocalLeap: confident anchors, and their neighbours by a relaxed threshold."""

    NAME = "local_leap"
    HURRIES = True
    threshold: float = _number(0.9, 0.0, 1.0, open_low=True)
    relaxed_threshold: float = _number(0.75, 0.0, 1.0, open_low=True)
    radius: int = _number(4, 0, 1024)


@dataclass(frozen=True, slots=True)
class Wino(Strategy):
    """WINO: accepts widely, and masks again what a leave-one-out look does not confirm."""

    NAME = "wino"
    REVOCABLE = True
    threshold: float = _number(0.6, 0.0, 1.0)
    threshold_back: float = _number(0.9, 0.0, 1.0)

    def step_tokens(self, length: int, block_length: int) -> int:
        return length + block_length

    def most_changes(self, positions: int, block_length: int, steps: int | None) -> int:
        return positions * block_length  # every step fills one more than it masks again


@dataclass(frozen=True, slots=True)
class Remdm(Strategy):
    """ReMDM: an ancestral schedule in which decoded positions may be masked again."""

    NAME = "remdm"
    HAS_STEPS = True
    SPARE_STEPS = True
    REVOCABLE = True
    mode: RemdmMode = _choice(RemdmMode.CAP)
    eta: float = _number(0.02, 0.0, 1.0)
    t_on: float = _number(0.55, 0.0, 1.0)
    t_off: float = _number(0.05, 0.0, 1.0)
    alpha_on: float = _number(0.9, 0.0, 1.0, open_low=True)

    def most_changes(self, positions: int, block_length: int, steps: int | None) -> int:
        assert steps is not None, "it has a schedule"
        num_blocks = -(-positions // block_length)
        return (steps + num_blocks) * block_length  # one more call after the last step of each


@dataclass(frozen=True, slots=True)
class Editing(Strategy):
    """LLaDA2.1: fills above a threshold, and replaces what it now sees otherwise."""

    NAME = "editing"
    REVOCABLE = True
    threshold: float = _number(0.95, 0.0, 1.0)
    edit_threshold: float = _number(0.9, 0.0, 1.0)
    max_post_steps: int = _number(16, 0, 1024)

    def most_changes(self, positions: int, block_length: int, steps: int | None) -> int:
        return positions * (block_length + self.max_post_steps)


@dataclass(frozen=True, slots=True)
class FreeDave(Strategy):
    """FreeDave: the fixed schedule's own result in fewer calls, by drafts verified side by side."""

    NAME = "freedave"
    HAS_STEPS = True
    drafts: int = _number(4, 1, 32)

    def step_tokens(self, length: int, block_length: int) -> int:
        return length * (1 + self.drafts)


@dataclass(frozen=True, slots=True)
class AdaptiveParallel(Strategy):
    """APD: a prefix of the proposals, as long as an autoregressive model agrees."""

    NAME = "adaptive_parallel"
    mixture: float = _number(0.7, 0.0, 1.0)
    max_lookahead: int = _number(100, 1, 4096)


@dataclass(frozen=True, slots=True)
class AdaptiveConfidence(Strategy):
    """APD's idea without a second model: as many of the best as are likely right together."""

    NAME = "adaptive_confidence"
    HURRIES = True
    GROWS = True
    threshold: float = _number(0.8, 0.0, 1.0, open_low=True)
    max_parallel: int = _number(16, 1, 1024)


@dataclass(frozen=True, slots=True)
class UniformNoise(Strategy):
    """DiffusionGemma: what is unsure becomes noise again, until the canvas has come to rest."""

    NAME = "uniform_noise"
    REVOCABLE = True
    entropy_bound: float = _number(0.1, 0.0, 1000.0, open_low=True)
    t_min: float = _number(0.4, 0.0, 100.0)
    t_max: float = _number(0.8, 0.0, 100.0, open_low=True)
    max_denoising_steps: int = _number(48, 1, 1024)
    stability_threshold: int = _number(1, 0, 1024)
    confidence_threshold: float = _number(0.005, 0.0, 1000.0, open_low=True)

    def most_changes(self, positions: int, block_length: int, steps: int | None) -> int:
        return positions * self.max_denoising_steps


@dataclass(frozen=True, slots=True)
class LeftToRight(Strategy):
    """One position at a time, in order: what a causal model does, and any model can."""

    NAME = "left_to_right"
    HURRIES = True


STRATEGIES: dict[str, type[Strategy]] = {
    kind.NAME: kind
    for kind in (
        FixedSchedule,
        ConfidenceThreshold,
        DreamSchedule,
        Factor,
        DynamicThreshold,
        EntropyBound,
        Klass,
        LocalLeap,
        Wino,
        Remdm,
        Editing,
        FreeDave,
        AdaptiveParallel,
        AdaptiveConfidence,
        LeftToRight,
        UniformNoise,
    )
}
