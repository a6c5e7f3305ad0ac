"""Checks how the lengths of holes are found that a request leaves open. Knows no canvas."""

from __future__ import annotations

from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.layout_checks import hole_ranges
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, LengthChoice
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import STRATEGIES, DreamOrder, DreamSchedule, Strategy
from vdiff_grpc.engine.types import ModelInfo, Request

# Expand tokens of a hole, as a multiple of its longest length: the reference's expand_budget.
EXPANSIONS = 2

_FIELD = "diffusion.hole_lengths"
_INSTEAD = "where holes grow; hole_lengths confidence chooses their lengths beforehand"


def most_steps(num_positions: int) -> int:
    """Most steps until holes of this length together are filled.

    Each step fills, deletes or expands one position at least. Nothing filled is opened again: no
    more is filled and deleted than there was at first and has been added.
    """
    return num_positions * (1 + 2 * EXPANSIONS)


def resolve_hole_lengths(
    request: Request, strategy: Strategy, info: ModelInfo, bad: Violations
) -> LengthChoice | None:
    """None where no hole leaves its length open."""
    asked = request.params.hole_lengths
    if not hole_ranges(request.prompt):
        if asked is not None:
            bad.add(
                _FIELD, f"hole_lengths ({asked.value}) needs a hole that leaves its length open"
            )
        return None
    if asked is LengthChoice.NATIVE and info.growth is None:
        bad.add(
            _FIELD,
            f"hole_lengths (native) cannot be set: the model {info.name} has no expand and delete "
            "tokens",
        )
        return asked
    choice = asked or (LengthChoice.CONFIDENCE if info.growth is None else LengthChoice.NATIVE)
    if choice is LengthChoice.NATIVE:
        _check_growing(request, strategy, bad)
    return choice


def _check_growing(request: Request, strategy: Strategy, bad: Violations) -> None:
    """What counts on positions, or on their number, before they are known."""
    asked = request.params
    if not strategy.GROWS:
        able = ", ".join(name for name, kind in STRATEGIES.items() if kind.GROWS)
        bad.add(
            f"diffusion.{strategy.NAME}",
            f"strategy {strategy.NAME} cannot be used {_INSTEAD}; with growing holes: {able}",
        )
    if isinstance(strategy, DreamSchedule) and strategy.order is DreamOrder.ORIGIN:
        bad.add(f"diffusion.{strategy.NAME}.order", f"order (origin) cannot be used {_INSTEAD}")
    longest = sum(most for _, most in hole_ranges(request.prompt))  # one block
    for field, value in (
        ("block_length", None if (asked.block_length or 0) >= longest else asked.block_length),
        ("steps", asked.steps),
        ("suffix_window", asked.suffix_window),
        ("cache", None if asked.cache is CacheKind.NONE else asked.cache),
    ):
        if value is not None:
            shown = value.value if isinstance(value, CacheKind) else value
            bad.add(f"diffusion.{field}", f"{field} ({shown}) cannot be set {_INSTEAD}")
    assert isinstance(request.prompt, InfillPrompt)
    for index, segment in enumerate(request.prompt.segments):
        if isinstance(segment, Hole) and segment.constraint is not None:
            field = f"infill.segments[{index}].hole.constraint"
            bad.add(field, f"a constraint cannot be used {_INSTEAD}")
    if request.latency_budget_ns is not None and not request.budget_is_optional:
        bad.add("latency_budget", f"latency_budget cannot be set {_INSTEAD}")
