"""Checks which answers a request wants back, and how much it wants to know of them."""

from __future__ import annotations

from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import Strategy
from vdiff_grpc.engine.types import AttentionPattern, EngineLimits, Granularity, ModelInfo, Request

# Of a unary reply; some 3 MB of positions, tokens, confidences and texts.
MAX_TRAJECTORY_CHANGES = 2**17


def check_answers(
    request: Request, n: int, info: ModelInfo, limits: EngineLimits, bad: Violations
) -> None:
    """How many are made and chosen from, and what cannot be streamed."""
    if request.return_trajectory and request.granularity is not Granularity.NONE:
        bad.add(
            "return_trajectory",
            "return_trajectory (true) cannot be streamed: granularity STEPS tells the same",
        )
    field, best_of = "sampling.best_of", request.params.best_of
    if best_of is None:
        return
    if best_of < n:
        bad.add(field, f"best_of ({best_of}) must be at least n ({n})")
    elif best_of > limits.max_n:
        bad.add(field, f"best_of ({best_of}) exceeds the server's limit ({limits.max_n})")
    if info.attention is AttentionPattern.CANVAS:
        bad.add(
            field,
            f"best_of ({best_of}) cannot be set: the model {info.name} fills noise, not masks, "
            "and has no likelihood to judge by",
        )
    if request.granularity is not Granularity.NONE:
        bad.add(
            field,
            f"best_of ({best_of}) cannot be streamed: which answers are the best is known at "
            "the end only",
        )


def check_trajectory(
    request: Request,
    strategy: Strategy,
    num_rows: int,
    num_positions: int,
    block_length: int,
    steps: int | None,
    bad: Violations,
    times: int = 1,
) -> None:
    """Its size. num_positions: of one answer, those beyond its end included. times: that each of
    the strategy's changes may move all of them.
    """
    if not request.return_trajectory:
        return
    most = num_rows * times * strategy.most_changes(num_positions, block_length, steps)
    if most > MAX_TRAJECTORY_CHANGES:
        bad.add(
            "return_trajectory",
            f"return_trajectory (true): {strategy.NAME} may change up to {most} positions in all outputs, "
            f"which exceeds the limit ({MAX_TRAJECTORY_CHANGES})",
        )
