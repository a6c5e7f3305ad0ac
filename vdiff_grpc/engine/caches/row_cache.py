"""The keys and values of one row's settled tokens, for causal and block-causal attention.

A settled token sees nothing that is still to come, so what it adds to attention never changes:
the cache is exact. It grows to the row's canvas and is freed with the row.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowCache:
    """length: tokens that are kept. A forward pass may add more, of which `advance` keeps some."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new tokens behind those that are kept; returns all of them, as views.

        key, value: [1, kv_heads, num_new, head_dim]; returned with num_kept + num_new tokens.
        """
        end = self.length + key.shape[2]
        assert end <= self.capacity, f"{end} tokens do not fit a cache of {self.capacity}"
        if layer not in self._layers:
            self._layers[layer] = (self._buffer(key), self._buffer(value))
        keys, values = self._layers[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, count: int) -> None:
        """Keeps the first `count` tokens of the last forward pass."""
        self.length += count

    def _buffer(self, like: Tensor) -> Tensor:
        _, heads, _, dim = like.shape
        return torch.empty(1, heads, self.capacity, dim, dtype=like.dtype, device=like.device)
