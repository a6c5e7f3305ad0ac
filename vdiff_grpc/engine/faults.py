"""Faults for tests of the whole server: real deaths of the real process, on request.

VDIFF_FAULTS in the server's environment, read by the engine alone: `die:13` ends the process in
a step whose canvases hold token id 13, `hang:13` never returns from it, `raise:13` raises in it,
`memory:13` raises as an exhausted device does. Several are separated by commas. Not for production.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

import torch

from vdiff_grpc.engine.sequence import Sequence

VARIABLE = "VDIFF_FAULTS"
_KINDS = ("die", "hang", "raise", "memory")


class Faults:
    """tokens: what a canvas must hold for each kind of fault."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self.tokens = tokens

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Faults:
        """Raises ValueError for what is not of the form above."""
        tokens: dict[str, int] = {}
        for fault in filter(None, environ.get(VARIABLE, "").split(",")):
            kind, _, token = fault.partition(":")
            if kind not in _KINDS or not token.isdecimal():
                allowed = ", ".join(f"{kind}:TOKEN_ID" for kind in _KINDS)
                raise ValueError(f"{VARIABLE}: {fault!r} is not one of {allowed}")
            tokens[kind] = int(token)
        return cls(tokens)

    def strike(self, rows: Iterable[Sequence]) -> None:
        """Before a step of these rows: the fault that one of them asks for."""
        if not self.tokens:
            return
        given = {token for row in rows for token in row.request.canvas}
        for kind, token in self.tokens.items():
            if token in given:
                _strike(kind)


def _strike(kind: str) -> None:
    match kind:
        case "die":
            os.abort()
        case "hang":
            while True:
                time.sleep(60.0)
        case "memory":
            raise torch.OutOfMemoryError("out of memory, as VDIFF_FAULTS asks")
        case _:
            raise RuntimeError("a fault, as VDIFF_FAULTS asks")
