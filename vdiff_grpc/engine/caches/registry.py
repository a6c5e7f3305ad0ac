"""The policy of each kind of cache. To add one: a file, its kind in kinds.py, and a row here."""

from __future__ import annotations

from vdiff_grpc.engine.caches.fast_dllm import KeepBoth, KeepPrefix
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.caches.policy import CachePolicy, KeepNothing
from vdiff_grpc.engine.caches.settled import KeepSettled

POLICIES: dict[CacheKind, CachePolicy] = {
    CacheKind.NONE: KeepNothing(),
    CacheKind.SETTLED: KeepSettled(),
    CacheKind.PREFIX: KeepPrefix(),
    CacheKind.DUAL: KeepBoth(),
}
