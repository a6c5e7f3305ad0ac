"""The rule of each strategy. To add one: a file, its dataclass in types.py, and a row here."""

from __future__ import annotations

from vdiff_grpc.engine.decoding.confidence_threshold import ConfidenceThresholdRule
from vdiff_grpc.engine.decoding.fixed_schedule import FixedScheduleRule
from vdiff_grpc.engine.decoding.rule import Rule
from vdiff_grpc.engine.types import ConfidenceThreshold, FixedSchedule

RULES: dict[type, Rule] = {
    FixedSchedule: FixedScheduleRule(),
    ConfidenceThreshold: ConfidenceThresholdRule(),
}
