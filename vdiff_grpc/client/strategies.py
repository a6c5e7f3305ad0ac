"""How positions are chosen: one function per case of `DiffusionParams.strategy`.

generation.proto says what each means. What is left out (None) is left out of the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from vdiff_grpc import v1

RemaskingOrder: TypeAlias = Literal["low_confidence", "random"]
DreamOrder: TypeAlias = Literal["entropy", "maskgit_plus", "topk_margin", "origin"]
RemdmMode: TypeAlias = Literal["cap", "rescale", "conf", "loop"]
Strategy: TypeAlias = (
    v1.FixedSchedule
    | v1.ConfidenceThreshold
    | v1.DreamSchedule
    | v1.Factor
    | v1.DynamicThreshold
    | v1.EntropyBound
    | v1.Klass
    | v1.LocalLeap
    | v1.Wino
    | v1.Remdm
    | v1.Editing
    | v1.FreeDave
    | v1.AdaptiveParallel
    | v1.AdaptiveConfidence
    | v1.LeftToRight
    | v1.UniformNoise
)

# The contract's own list: case -> the fields of its message.
_CASES: dict[str, Any] = {
    case.name: case for case in v1.DiffusionParams.DESCRIPTOR.oneofs_by_name["strategy"].fields
}
_NAMES = {case.message_type.full_name: name for name, case in _CASES.items()}

STRATEGIES: tuple[str, ...] = tuple(_CASES)


def fixed_schedule(remasking: RemaskingOrder | None = None) -> v1.FixedSchedule:
    """An even share of the block at every step; `remasking` says which positions first."""
    return v1.FixedSchedule(remasking=_choice(v1.FixedSchedule, "remasking", remasking))


def confidence_threshold(threshold: float | None = None) -> v1.ConfidenceThreshold:
    """Every prediction at least this confident, and always the best one."""
    return v1.ConfidenceThreshold(threshold=threshold)


def dream_schedule(
    order: DreamOrder | None = None, order_temperature: float | None = None
) -> v1.DreamSchedule:
    """Dream's schedule in one of its orders."""
    return v1.DreamSchedule(
        order=_choice(v1.DreamSchedule, "order", order), order_temperature=order_temperature
    )


def factor(factor: float | None = None) -> v1.Factor:
    """The n most confident while the n-th is at least 1 - factor / (n + 1)."""
    return v1.Factor(factor=factor)


def dynamic_threshold(threshold: float | None = None) -> v1.DynamicThreshold:
    """All above the threshold if they are as many as the schedule asks, else its share."""
    return v1.DynamicThreshold(threshold=threshold)


def entropy_bound(bound: float | None = None) -> v1.EntropyBound:
    """In order of rising entropy, as long as its sum stays within the bound."""
    return v1.EntropyBound(bound=bound)


def klass(
    threshold: float | None = None, kl_threshold: float | None = None, history: int | None = None
) -> v1.Klass:
    """What is confident and has come to rest."""
    return v1.Klass(threshold=threshold, kl_threshold=kl_threshold, history=history)


def local_leap(
    threshold: float | None = None,
    relaxed_threshold: float | None = None,
    radius: int | None = None,
) -> v1.LocalLeap:
    """Confident anchors, and what lies near one by a relaxed threshold."""
    return v1.LocalLeap(threshold=threshold, relaxed_threshold=relaxed_threshold, radius=radius)


def wino(threshold: float | None = None, threshold_back: float | None = None) -> v1.Wino:
    """Fills widely, and masks again what is not confirmed."""
    return v1.Wino(threshold=threshold, threshold_back=threshold_back)


def remdm(
    mode: RemdmMode | None = None,
    eta: float | None = None,
    *,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
) -> v1.Remdm:
    """Fills and masks again at random, on a schedule."""
    return v1.Remdm(
        mode=_choice(v1.Remdm, "mode", mode), eta=eta, t_on=t_on, t_off=t_off, alpha_on=alpha_on
    )


def editing(
    threshold: float | None = None,
    edit_threshold: float | None = None,
    max_post_steps: int | None = None,
) -> v1.Editing:
    """Fills above a threshold, and replaces what it now sees otherwise."""
    return v1.Editing(
        threshold=threshold, edit_threshold=edit_threshold, max_post_steps=max_post_steps
    )


def freedave(drafts: int | None = None) -> v1.FreeDave:
    """The fixed schedule's own answer in fewer calls of the model."""
    return v1.FreeDave(drafts=drafts)


def adaptive_parallel(
    mixture: float | None = None, max_lookahead: int | None = None
) -> v1.AdaptiveParallel:
    """A prefix of the proposals, as long as an autoregressive model agrees."""
    return v1.AdaptiveParallel(mixture=mixture, max_lookahead=max_lookahead)


def adaptive_confidence(
    threshold: float | None = None, max_parallel: int | None = None
) -> v1.AdaptiveConfidence:
    """The most confident, while the product of their confidences reaches the threshold."""
    return v1.AdaptiveConfidence(threshold=threshold, max_parallel=max_parallel)


def left_to_right() -> v1.LeftToRight:
    """One position at a time, in order."""
    return v1.LeftToRight()


def uniform_noise(
    entropy_bound: float | None = None,
    *,
    t_min: float | None = None,
    t_max: float | None = None,
    max_denoising_steps: int | None = None,
    stability_threshold: int | None = None,
    confidence_threshold: float | None = None,
) -> v1.UniformNoise:
    """What is unsure becomes noise again, until the canvas has come to rest."""
    return v1.UniformNoise(
        entropy_bound=entropy_bound,
        t_min=t_min,
        t_max=t_max,
        max_denoising_steps=max_denoising_steps,
        stability_threshold=stability_threshold,
        confidence_threshold=confidence_threshold,
    )


def strategy(name: str, **parameters: float | str | None) -> Strategy:
    """Any strategy by its name in the contract. ValueError for what it does not have."""
    if name not in _CASES:
        raise ValueError(f"strategy ({name}) must be one of {', '.join(_CASES)}")
    kind: type[Strategy] = getattr(v1, _CASES[name].message_type.name)
    fields = _CASES[name].message_type.fields_by_name
    message = kind()
    for key, value in parameters.items():
        if key not in fields:
            has = ", ".join(fields) or "none"
            raise ValueError(f"{key} is no parameter of {name}, which has {has}")
        if value is None:
            continue
        if fields[key].enum_type is not None:
            value = _choice(kind, key, str(value))
        try:
            setattr(message, key, value)
        except (TypeError, ValueError):
            raise ValueError(f"{key} ({value}) is not a number that {name} can take") from None
    return message


def strategy_name(strategy: Strategy) -> str:
    """The case of the contract's oneof that the message stands for. TypeError for any other."""
    try:
        return _NAMES[strategy.DESCRIPTOR.full_name]
    except (AttributeError, KeyError):
        raise TypeError(f"{type(strategy).__name__} is no strategy") from None


def _choice(kind: type[Strategy], field: str, value: str | None) -> Any:
    """The number of an enum's value: "low_confidence" -> REMASKING_ORDER_LOW_CONFIDENCE."""
    if value is None:
        return None
    choices = _choices(kind, field)
    if value not in choices:
        raise ValueError(f"{field} ({value}) must be one of {', '.join(choices)}")
    return choices[value]


def _choices(kind: type[Strategy], field: str) -> Mapping[str, int]:
    enum_type: Any = kind.DESCRIPTOR.fields_by_name[field].enum_type
    prefix = enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {
        value.name.removeprefix(prefix).lower(): value.number
        for value in enum_type.values
        if value.number
    }
