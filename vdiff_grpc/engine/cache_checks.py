"""Checks what a request asks to be kept of its canvas, and how much can be. Knows no canvas."""

from __future__ import annotations

from vdiff_grpc.engine.caches.kinds import APPROXIMATE, CacheKind, page_tokens
from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.strategies import AdaptiveParallel, FreeDave, Klass, Strategy, Wino
from vdiff_grpc.engine.types import (
    AttentionPattern,
    EngineConfig,
    EngineLimits,
    ModelInfo,
    RequestParams,
)

MAX_REFRESH_STEPS = 4096

# Rules that look at more than the active block, which only a whole canvas shows.
_BEYOND: dict[type[Strategy], tuple[CacheKind, ...]] = {
    Wino: APPROXIMATE,
    FreeDave: APPROXIMATE,
    AdaptiveParallel: APPROXIMATE,
    Klass: (CacheKind.DUAL,),
}

_AHEAD = (Wino, AdaptiveParallel, Klass)

# Kept tokens, where the configuration says nothing: 2.1 GB of LLaDA-8B's, 9.7 GB of SDAR-8B's.
_FEW, _MANY = 4096, 65536


def cache_tokens(config: EngineConfig, info: ModelInfo, canvas: int) -> int:
    """Tokens whose keys and values are kept, of all rows together: whole pages.

    canvas: the longest.
    """
    if info.caches == (CacheKind.NONE,) or info.attention is AttentionPattern.CANVAS:
        return 0  # nothing, or by the network itself
    page = page_tokens(info.block_length)
    wanted = config.cache_tokens
    if not wanted:
        longest = -(-canvas // page) * page
        if info.attention is AttentionPattern.FULL:  # wanted only by who asks for it
            wanted = min(config.max_running_rows * longest, _FEW)
        else:
            wanted = min(config.max_running_rows * longest, _MANY)
    return wanted // page * page


def auxiliary_tokens(config: EngineConfig, info: ModelInfo, canvas: int) -> int:
    """The same of the auxiliary model; a canvas of it always fits."""
    if not info.auxiliary:
        return 0
    page, longest = page_tokens(None), min(info.auxiliary_positions, canvas)
    wanted = max(min(config.max_running_rows * longest, _MANY), longest)
    return -(-wanted // page) * page


def resolve_cache(
    asked: RequestParams, strategy: Strategy, info: ModelInfo, bad: Violations
) -> tuple[CacheKind, int]:
    """The kind, and the steps after which what is kept is computed anew."""
    kind, refresh = asked.cache or info.caches[0], asked.cache_refresh_steps
    if kind not in info.caches:
        names = ", ".join(k.value for k in info.caches)
        bad.add("diffusion.cache", f"cache {kind.value} is not among this model's: {names}")
    elif kind in _BEYOND.get(type(strategy), ()):
        bad.add(
            "diffusion.cache",
            f"cache {kind.value} cannot be used with {strategy.NAME}, which looks beyond the block",
        )
    if refresh is not None and not 1 <= refresh <= MAX_REFRESH_STEPS:
        bad.add(
            "diffusion.cache_refresh_steps",
            f"cache_refresh_steps ({refresh}) is not in [1, {MAX_REFRESH_STEPS}]",
        )
    if refresh is not None and kind not in APPROXIMATE:
        bad.add(
            "diffusion.cache_refresh_steps",
            f"cache_refresh_steps ({refresh}) cannot be set with cache {kind.value}, "
            "of which nothing grows old",
        )
    return kind, refresh or 0


def check_window(window: int | None, strategy: Strategy, info: ModelInfo, bad: Violations) -> None:
    """What is beyond the window nobody may look at."""
    if window is None:
        return
    if info.attention is not AttentionPattern.FULL:
        why = f"the model {info.name} does not see what stands behind a block"
    elif type(strategy) in _AHEAD:
        why = f"{strategy.NAME} looks beyond the block"
    else:
        return
    bad.add("diffusion.suffix_window", f"suffix_window ({window}) cannot be set: {why}")


def check_room(
    kind: CacheKind,
    length: int,
    cfg_scale: float,
    info: ModelInfo,
    limits: EngineLimits,
    bad: Violations,
) -> None:
    """All that a row keeps must fit when it is alone."""
    if kind is CacheKind.NONE or info.attention is AttentionPattern.CANVAS:
        return
    page = page_tokens(info.block_length)
    wanted = -(-length // page) * page * (2 if cfg_scale > 0 else 1)
    if wanted > limits.max_cache_tokens:
        bad.add(
            "diffusion.cache",
            f"cache {kind.value} keeps {wanted} tokens of a canvas of {length}"
            f"{' and its blind twin' if cfg_scale > 0 else ''}, which exceeds the server's limit "
            f"({limits.max_cache_tokens})",
        )
