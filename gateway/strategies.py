"""Strategies as msgspec types, made from the contract's messages: `{"type": "wino", "threshold": 0.5}`.

Names, types and choices are the contract's own. The ranges stand in its comments only, so they
are written down here once more, for the document and for early refusals; the server has the last
word, and a case or a field that has no row here is passed on as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from msgspec import Meta

from vdiff_grpc import v1

_UINT32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """What a parameter may be, and what it is when the client does not say."""

    default: float | str
    low: float = 0.0
    high: float = 1.0
    open_low: bool = False


ABOUT: dict[str, tuple[str, dict[str, Range]]] = {
    "fixed_schedule": (
        "Unmask an even share of the block at every step (LLaDA). `remasking` says which "
        "positions stay masked longest.",
        {"remasking": Range("low_confidence")},
    ),
    "confidence_threshold": (
        "Unmask every prediction at least this confident, and always the best (Fast-dLLM).",
        {"threshold": Range(0.9, open_low=True)},
    ),
    "dream_schedule": (
        "Unmask a share that follows t from 1 to 0.001 over the steps, in one of four orders "
        "(Dream). `order_temperature` is Dream's alg_temp; not with order origin.",
        {"order": Range("entropy"), "order_temperature": Range(0, 0, 100)},
    ),
    "factor": (
        "Unmask the n most confident while the n-th is at least 1 - factor / (n + 1) (Fast-dLLM).",
        {"factor": Range(1, 0, 1000, open_low=True)},
    ),
    "dynamic_threshold": (
        "Unmask all above the threshold if they are as many as the schedule asks, else its share "
        "(SDAR).",
        {"threshold": Range(0.85, open_low=True)},
    ),
    "entropy_bound": (
        "Unmask in order of rising entropy while the sum without the largest stays within the "
        "bound, in nats (EB).",
        {"bound": Range(0.1, 0, 1000)},
    ),
    "klass": (
        "Unmask what is confident and whose distribution has come to rest, else the schedule's "
        "share (KLASS).",
        {
            "threshold": Range(0.9),
            "kl_threshold": Range(0.01, 0, 100),
            "history": Range(2, 1, 8),
        },
    ),
    "local_leap": (
        "Unmask confident anchors, and their neighbours by a relaxed threshold, which is at most "
        "the other (LocalLeap).",
        {
            "threshold": Range(0.9, open_low=True),
            "relaxed_threshold": Range(0.75, open_low=True),
            "radius": Range(4, 0, 1024),
        },
    ),
    "wino": (
        "Unmask widely, and mask again what a look without it does not confirm (WINO). The text "
        "of a block comes when it is left.",
        {"threshold": Range(0.6), "threshold_back": Range(0.9)},
    ),
    "remdm": (
        "Unmask and mask again at random, on a schedule (ReMDM). `eta` not with mode conf; `t_on`, "
        "`t_off` and `alpha_on` only with mode loop. The text of a block comes when it is left.",
        {
            "mode": Range("cap"),
            "eta": Range(0.02),
            "t_on": Range(0.55),
            "t_off": Range(0.05),
            "alpha_on": Range(0.9, open_low=True),
        },
    ),
    "editing": (
        "Unmask above a threshold, always the best, and replace tokens that the model now sees "
        "otherwise (LLaDA2.1). The text of a block comes when it is left.",
        {
            "threshold": Range(0.95),
            "edit_threshold": Range(0.9),
            "max_post_steps": Range(16, 0, 1024),
        },
    ),
    "freedave": (
        "What fixed_schedule gives, in fewer calls of the model: drafts of its next steps are "
        "verified side by side (FreeDave).",
        {"drafts": Range(4, 1, 32)},
    ),
    "adaptive_parallel": (
        "Unmask a prefix of the proposals, as long as a mixture with a small autoregressive model "
        "draws the same (APD). Needs a server with an auxiliary model.",
        {"mixture": Range(0.7), "max_lookahead": Range(100, 1, 4096)},
    ),
    "adaptive_confidence": (
        "Unmask the most confident while the product of their confidences reaches the threshold, "
        "and always the best.",
        {"threshold": Range(0.8, open_low=True), "max_parallel": Range(16, 1, 1024)},
    ),
    "uniform_noise": (
        "Fill all, and make noise again of what is unsure, until the canvas has come to rest "
        "(DiffusionGemma). `t_max` exceeds `t_min`. The text of a block comes when it is left.",
        {
            "entropy_bound": Range(0.1, 0, 1000, open_low=True),
            "t_min": Range(0.4, 0, 100),
            "t_max": Range(0.8, 0, 100, open_low=True),
            "max_denoising_steps": Range(48, 1, 1024),
            "stability_threshold": Range(1, 0, 1024),
            "confidence_threshold": Range(0.005, 0, 1000, open_low=True),
        },
    ),
    "left_to_right": ("Unmask one position at a time, from left to right.", {}),
}

_CASES: dict[str, Any] = {
    case.name: case for case in v1.DiffusionParams.DESCRIPTOR.oneofs_by_name["strategy"].fields
}
NAMES = tuple(_CASES)


def set_strategy(diffusion: v1.DiffusionParams, strategy: Strategy) -> None:
    """Writes the client's strategy into the contract's. What it left out stays absent."""
    name = str(strategy.__struct_config__.tag)
    message = getattr(diffusion, name)
    message.SetInParent()
    for field in _CASES[name].message_type.fields:
        value = getattr(strategy, field.name)
        if value is not None:
            setattr(message, field.name, _words(field)[value] if field.enum_type else value)


def choices() -> dict[str, tuple[str, ...]]:
    """For error messages: what fields with few values may be."""
    found = {"type": NAMES}
    for case in _CASES.values():
        found |= {f.name: tuple(_words(f)) for f in case.message_type.fields if f.enum_type}
    return found


def _struct(name: str) -> type[msgspec.Struct]:
    message = _CASES[name].message_type
    about, ranges = ABOUT.get(name, ("", {}))
    return msgspec.defstruct(
        message.name,
        [(field.name, _type(field, ranges.get(field.name)), None) for field in message.fields],
        namespace={"__doc__": about},
        module=__name__,
        tag_field="type",
        tag=name,
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _type(field: Any, given: Range | None) -> Any:
    """The type of one parameter, which may also be null: the default."""
    about = Meta(description=f"Default {given.default}.") if given else Meta()
    if field.enum_type is not None:
        return Annotated[Literal[tuple(_words(field))] | None, about]
    low, high = (given.low, given.high) if given else (None, None)
    above: dict[str, Any] = {"gt" if given and given.open_low else "ge": low}
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return Annotated[Annotated[float, Meta(**above, le=high)] | None, about]
    assert field.type == FieldDescriptor.TYPE_UINT32, f"{field.full_name} is of a new type"
    least, most = (int(low or 0), int(high or 0)) if given else (0, _UINT32)
    return Annotated[Annotated[int, Meta(ge=least, le=most)] | None, about]


def _words(field: Any) -> dict[str, int]:
    """An enum's values as JSON has them: "low_confidence" for REMASKING_ORDER_LOW_CONFIDENCE."""
    values = field.enum_type.values
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {v.name.removeprefix(prefix).lower(): v.number for v in values if v.number}


if TYPE_CHECKING:
    Strategy: TypeAlias = msgspec.Struct
else:
    Strategy = reduce(or_, (_struct(name) for name in NAMES))
