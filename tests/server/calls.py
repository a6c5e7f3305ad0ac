"""Short ways to make requests of the tiny checkpoint and to read its replies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from vdiff_grpc import v1

PROMPT = [5, 17, 42, 8]
MASK = 96
_M = TypeVar("_M", bound=Message)


def spec(
    prompt: Iterable[int] = PROMPT, *, diffusion: dict[str, Any] | None = None, **sampling: Any
) -> v1.GenerationSpec:
    sampling = {"seed": 1, "ignore_eos": True, "max_new_tokens": 16} | sampling
    return v1.GenerationSpec(
        token_ids=v1.TokenIds(ids=prompt),
        sampling=v1.SamplingParams(**sampling),
        diffusion=v1.DiffusionParams(**({"block_length": 16} | (diffusion or {}))),
    )


def long_spec(**sampling: Any) -> v1.GenerationSpec:
    """Many steps: 120 for each of n answers, one token each."""
    length = sampling.setdefault("max_new_tokens", 120)
    return spec(diffusion={"steps": length}, **sampling)


def generate(spec: v1.GenerationSpec) -> v1.GenerateRequest:
    return v1.GenerateRequest(spec=spec)


def stream(
    spec: v1.GenerationSpec, granularity: int = 0, **options: Any
) -> v1.StreamGenerateRequest:
    options["granularity"] = granularity
    return v1.StreamGenerateRequest(spec=spec, options=v1.StreamOptions(**options))


def ids(response: v1.GenerateResponse) -> list[list[int]]:
    return [list(output.tokens.ids) for output in response.outputs]


def detail(error: grpc.RpcError, kind: type[_M]) -> _M:
    """The error's google.rpc detail of this kind."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


def reason(error: grpc.RpcError) -> str:
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info.domain == "vdiff"
    return info.reason


def violations(error: grpc.RpcError) -> dict[str, str]:
    found = detail(error, error_details_pb2.BadRequest).field_violations
    return {violation.field: violation.description for violation in found}


class Canvases:
    """A client that applies every event it gets, as the contract says."""

    def __init__(self) -> None:
        self.canvas: dict[int, list[int]] = {}
        self.committed: dict[int, list[int]] = {}
        self.positions: dict[int, list[int]] = {}
        self.snapshots = 0
        self.updates = 0
        self.finished: v1.Finished | None = None
        self._empty: list[int] = []

    def apply(self, response: v1.StreamGenerateResponse) -> None:
        kind = response.WhichOneof("event")
        event = getattr(response, kind)
        if kind == "started":
            self._empty = list(event.layout.token_ids)
        elif kind == "step_update":
            self.updates += 1
            canvas = self.canvas.setdefault(event.output_index, list(self._empty))
            for position, token_id in zip(event.positions, event.token_ids, strict=True):
                canvas[position] = token_id
        elif kind == "snapshot":
            self.snapshots += 1
            self.canvas[event.output_index] = list(event.token_ids)
        elif kind == "committed":
            self.committed.setdefault(event.output_index, []).extend(event.tokens.ids)
            self.positions.setdefault(event.output_index, []).extend(event.tokens.positions)
        else:
            self.finished = event
