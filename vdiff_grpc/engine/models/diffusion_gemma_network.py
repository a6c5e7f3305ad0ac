"""DiffusionGemma's forward pass, row by row.

An encoder reads causally what can no longer change and keeps its keys and values; a decoder looks
at them and, in both directions, at one canvas. Experts are products over however many tokens
choose them, so rows that shared a pass would change one another's last bits: each is computed by
itself, and its logits are the same in any company.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vdiff_grpc.engine.columns import Ints, Variant
from vdiff_grpc.engine.exact import whole_rows
from vdiff_grpc.engine.models.row_model import RowModel


@dataclass(slots=True)
class CanvasState:
    """What the network keeps of one row.

    unread: settled tokens that the encoder has not read. num_read: how many it has, and `cache`
    their keys and values.
    conditioning: [1, canvas_length, vocab_size] the last step's tempered logits in the network's
    dtype; None in the first step of a canvas.
    """

    unread: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    num_read: int = 0
    cache: DynamicCache | None = None
    conditioning: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def condition(self, logits: Tensor) -> None:
        """The next step sees what this one thought. logits: [canvas_length, vocab_size].

        It takes their softmax: less the largest they are the same to it, and fit in float16.
        """
        below = logits - logits.amax(dim=-1, keepdim=True)
        self.conditioning = below.to(self.dtype).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class DiffusionGemmaModel(RowModel):
    """The native network without its eyes: images are not served."""

    def __post_init__(self) -> None:
        encoder: Any = self.network.model.encoder  # type: ignore[union-attr]
        encoder.vision_tower = encoder.embed_vision = None

    @torch.inference_mode()
    def row_logits(self, variants: Rows[Variant]) -> Tensor:
        """[all canvas positions, vocab_size] float32, then filler; a variant has its state."""
        logits = [self._canvas_logits(variant) for variant in variants]
        count = sum(map(len, logits))
        missing = whole_rows(count) - count
        return torch.cat([*logits, logits[0].new_zeros(missing, logits[0].shape[1])])

    def _canvas_logits(self, variant: Variant) -> Tensor:
        state = variant.state
        assert isinstance(state, CanvasState), "a canvas has its state"
        if len(state.unread):
            self._read(state)
        output = self.network(
            decoder_input_ids=self._row(variant.token_ids),
            decoder_position_ids=self._row(variant.position_ids),
            self_conditioning_logits=state.conditioning,
            **_cached(self.network, state.cache),
        )
        logits: Tensor = output.logits[0]
        return logits.float()

    def _read(self, state: CanvasState) -> None:
        """Everything settled goes into the cache; the encoder's own output is not needed."""
        text: Any = self.network.model.encoder.language_model  # type: ignore[union-attr]
        if state.cache is None:
            state.cache = DynamicCache(config=text.config)
            state.dtype = self.dtype
        end = state.num_read + len(state.unread)
        text(
            input_ids=self._row(state.unread),
            position_ids=self._row(np.arange(state.num_read, end)),
            **_cached(text, state.cache),
        )
        state.num_read, state.unread = end, state.unread[:0]

    def _row(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self.device).unsqueeze(0)


def _cached(network: nn.Module, memory: DynamicCache | None) -> dict[str, Any]:
    return {_cache_name(type(network).forward): memory}


@cache
def _cache_name(forward: Callable[..., Any]) -> str:
    """transformers 5.24 gave the argument a new name, and warns of the old one."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
