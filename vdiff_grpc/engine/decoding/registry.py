"""The rule of each strategy. To add one: a file, its dataclass in strategies.py, and a row here."""

from __future__ import annotations

from vdiff_grpc.engine.decoding.adaptive_confidence import AdaptiveConfidenceRule
from vdiff_grpc.engine.decoding.adaptive_parallel import AdaptiveParallelRule
from vdiff_grpc.engine.decoding.confidence_threshold import ConfidenceThresholdRule
from vdiff_grpc.engine.decoding.diffusion_gemma import UniformNoiseRule
from vdiff_grpc.engine.decoding.dream_schedule import DreamScheduleRule
from vdiff_grpc.engine.decoding.dynamic_threshold import DynamicThresholdRule
from vdiff_grpc.engine.decoding.editing import EditingRule
from vdiff_grpc.engine.decoding.entropy_bound import EntropyBoundRule
from vdiff_grpc.engine.decoding.factor import FactorRule
from vdiff_grpc.engine.decoding.fixed_schedule import FixedScheduleRule
from vdiff_grpc.engine.decoding.freedave import FreeDaveRule
from vdiff_grpc.engine.decoding.hole_lengths import HoleLengthsRule
from vdiff_grpc.engine.decoding.klass import KlassRule
from vdiff_grpc.engine.decoding.left_to_right import LeftToRightRule
from vdiff_grpc.engine.decoding.likelihood import LikelihoodRule
from vdiff_grpc.engine.decoding.local_leap import LocalLeapRule
from vdiff_grpc.engine.decoding.remdm import RemdmRule
from vdiff_grpc.engine.decoding.rule import Rule
from vdiff_grpc.engine.decoding.wino import WinoRule
from vdiff_grpc.engine.lengths import HoleLengths
from vdiff_grpc.engine.likelihood import is_scoring
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import STRATEGIES, Strategy

_RULES: tuple[Rule, ...] = (
    FixedScheduleRule(),
    ConfidenceThresholdRule(),
    DreamScheduleRule(),
    FactorRule(),
    DynamicThresholdRule(),
    EntropyBoundRule(),
    KlassRule(),
    LocalLeapRule(),
    WinoRule(),
    RemdmRule(),
    EditingRule(),
    FreeDaveRule(),
    AdaptiveParallelRule(),
    AdaptiveConfidenceRule(),
    LeftToRightRule(),
    UniformNoiseRule(),
)

RULES: dict[type[Strategy], Rule] = {STRATEGIES[rule.name]: rule for rule in _RULES}
RULES[HoleLengths] = HoleLengthsRule()

_LIKELIHOOD = LikelihoodRule()

# In this order their rows stand in a step.
ORDER: dict[Rule, int] = {
    rule: number for number, rule in enumerate((*RULES.values(), _LIKELIHOOD))
}


def rule_of(row: Sequence) -> Rule:
    """The rule that the row's request asks for, or what comes before it or after its answer."""
    if is_scoring(row):
        return _LIKELIHOOD
    return RULES[type(row.params.strategy)]
