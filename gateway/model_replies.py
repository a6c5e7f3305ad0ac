"""What the served model can do, as OpenAI's list of models: pure, no IO."""

from __future__ import annotations

from vdiff_grpc import v1

from . import openai_replies as openai
from .convert import CACHES

_CACHES = {number: name for name, number in CACHES.items()}


def models(info: v1.GetModelInfoResponse, server: v1.GetServerInfoResponse) -> openai.ModelList:
    """The served model, once under each of its names."""
    return openai.ModelList("list", [model(info, server, n) for n in (info.model, *info.aliases)])


def model(
    info: v1.GetModelInfoResponse, server: v1.GetServerInfoResponse, name: str
) -> openai.Model:
    return openai.Model(
        id=name,
        object="model",
        created=server.start_time.seconds,
        owned_by="vdiff-grpc",
        revision=info.revision,
        max_model_len=info.limits.max_canvas_tokens,
        caches=[_CACHES[kind] for kind in info.caches if kind in _CACHES],
        strategies=list(info.strategies),
        supports_infill=info.supports_infill,
        grows_holes=info.grows_holes,
        supports_chat=info.has_chat_template,
        supports_tools=info.supports_tools,
    )
