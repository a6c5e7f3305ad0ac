"""Mixtures of experts for packed rows, registered with transformers' experts interface.

How many tokens of a step choose an expert depends on the company, and so does the last bit of a
product or an activation of few rows (engine/exact.py). So each expert's tokens are filled up to
whole rows, as packed tokens are, and a token's contributions are added in one order, that of the
experts: what a token computes depends on nothing but itself.

On a GPU the kernel follows the shape: there every product has one shape, except in bfloat16, where
torch's grouped kernel does a layer in two calls. Its result for a token is taken not to depend on
how the tokens fall into groups; a fill to one constant shape is asked for there in any case.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from vdiff_grpc.engine.exact import ROWS

BACKEND = "vdiff_exact"
_TILE_ROWS = 64  # of every product on a GPU
_EXPERT_KEY = re.compile(r"(.*\.experts\.)(\d+)(\..+)")


def exact_experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """hidden_states: [T, hidden]; top_k_index, top_k_weights: [T, k]. Returns [T, hidden].

    module: one of transformers' expert collections, whose weights are packed in three dimensions.
    The weighted sum is in float32, as LLaDA2's modelling code has it.
    """
    if hidden_states.is_cuda and hidden_states.dtype is torch.bfloat16:
        result: Tensor = grouped_mm_experts_forward(
            module, hidden_states, top_k_index, top_k_weights
        )
        return result
    num_tokens, top_k = top_k_index.shape
    experts, by_expert = top_k_index.sort(dim=-1, stable=True)
    weights = top_k_weights.gather(-1, by_expert)
    chosen, pairs = experts.flatten().sort(stable=True)  # pair p is of token p // top_k
    ends = torch.bincount(chosen, minlength=module.num_experts).cumsum(0).tolist()
    outputs = hidden_states.new_empty(num_tokens * top_k, hidden_states.shape[1])
    for expert, (begin, end) in enumerate(pairwise([0, *ends])):
        for first, last in _pieces(begin, end, hidden_states):
            mine = pairs[first:last]
            rows = _filled(hidden_states[mine // top_k])
            outputs[mine] = _expert(module, expert, rows)[: len(mine)]
    parts = outputs.view(num_tokens, top_k, -1).float() * weights.float().unsqueeze(-1)
    total = parts[:, 0]
    for place in range(1, top_k):
        total = total + parts[:, place]
    return total.to(hidden_states.dtype)


def _pieces(begin: int, end: int, like: Tensor) -> list[tuple[int, int]]:
    """What one product takes of an expert's tokens: all on CPU, a tile elsewhere."""
    size = _TILE_ROWS if like.device.type != "cpu" else max(end - begin, 1)
    return [(first, min(first + size, end)) for first in range(begin, end, size)]


def _filled(rows: Tensor) -> Tensor:
    """Zeros below: whole rows on CPU, a whole tile elsewhere."""
    whole = ROWS if rows.device.type == "cpu" else _TILE_ROWS
    return F.pad(rows, (0, 0, 0, -len(rows) % whole))


def _expert(module: Any, expert: int, rows: Tensor) -> Tensor:
    """One expert's [hidden] -> [hidden] network, on [n, hidden] rows."""
    if module.has_gate:
        inner = module._apply_gate(_product(module, "gate_up_proj", expert, rows))
    else:
        inner = module.act_fn(_product(module, "up_proj", expert, rows))
    outer = _product(module, "down_proj", expert, inner)
    return module.post_expert_norm(outer) if module.has_post_expert_norm else outer


def _product(module: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    weight: Tensor = getattr(module, name)[expert]
    bias: Tensor | None = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(rows, weight.T if module.is_transposed else weight, bias)


def missing_keys(keys: Iterable[str]) -> list[str]:
    """Tensors of single experts that a checkpoint lacks although it has them for others.

    transformers merges experts in the order of their numbers and, where one lacks a tensor, fails
    without saying which.
    """
    numbers: dict[str, set[str]] = defaultdict(set)
    parts: dict[str, set[str]] = defaultdict(set)
    present = set(keys)
    for key in present:
        if match := _EXPERT_KEY.fullmatch(key):
            prefix, number, part = match.groups()
            numbers[prefix].add(number)
            parts[prefix].add(part)
    wanted = {p + n + part for p in numbers for n in numbers[p] for part in parts[p]}
    return sorted(wanted - present)


def register() -> None:
    """Makes BACKEND known to transformers. May be called again."""
    ExpertsInterface.register(BACKEND, exact_experts)
