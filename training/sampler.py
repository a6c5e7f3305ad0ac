"""Owns a small batched sampler with LLaDA's rule, used only for the figures of evaluate.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import Network
from training.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, EOT_ID, MASK_ID, USER_ID

BANNED = [BOS_ID, MASK_ID, USER_ID, ASSISTANT_ID]
ENDS = (EOS_ID, EOT_ID)
ROWS = 64


def commit(
    logits: Tensor, open_: Tensor, count: int, temperature: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Drawn tokens, and which of the open positions to commit: the most confident ones."""
    logits = logits.clone()
    logits[..., BANNED] = float("-inf")
    drawn = logits
    if temperature > 0:
        u = torch.rand(logits.shape, generator=rng, dtype=torch.float32).clamp_(1e-9, 1 - 1e-7)
        drawn = logits - temperature * torch.log(-torch.log(u))
    tokens = drawn.argmax(-1)
    sure = F.softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
    sure = torch.where(open_, sure, torch.full_like(sure, -1.0))
    best = sure.topk(min(count, sure.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(open_).scatter_(-1, best, True) & open_
    return tokens, chosen


@torch.no_grad()
def fill(
    net: Network,
    canvas: Tensor,
    first: int,
    temperature: float,
    rng: torch.Generator,
    block: int = 32,
    per_step: int = 1,
) -> Tensor:
    """Fill the masks of equal-length rows block by block from position `first`.

    A row is finished, and leaves the batch, when a filled block holds an end token and no mask
    before it; the masks after that end are replaced by EOS.
    """
    canvas = canvas.clone()
    length = canvas.shape[1]
    live = torch.arange(canvas.shape[0])
    for begin in range(first, length, block):
        stop = min(begin + block, length)
        while live.numel():
            rows = canvas[live]
            open_ = rows[:, begin:stop] == MASK_ID
            if not bool(open_.any()):
                break
            logits = F.linear(net.hidden(rows)[:, begin:stop], net.embed)
            tokens, chosen = commit(logits, open_, per_step, temperature, rng)
            rows[:, begin:stop] = torch.where(chosen, tokens, rows[:, begin:stop])
            canvas[live] = rows
        keep: list[int] = []
        for r in live.tolist():
            done = canvas[r, begin:stop]
            ended = bool(((done == EOS_ID) | (done == EOT_ID)).any())
            if ended:
                rest = canvas[r, stop:]
                rest[rest == MASK_ID] = EOS_ID
            else:
                keep.append(r)
        live = torch.tensor(keep, dtype=torch.long)
    return canvas


def generate(
    net: Network,
    prompts: Sequence[Sequence[int]],
    new_tokens: int = 128,
    temperature: float = 0.0,
    block: int = 32,
    per_step: int = 1,
    seed: int = 0,
) -> list[list[int]]:
    """Replies up to and with their first end token, in the order of the prompts."""
    rng = torch.Generator().manual_seed(seed)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt)].append(i)
    out: list[list[int]] = [[] for _ in prompts]
    for size, members in sorted(groups.items()):
        for at in range(0, len(members), ROWS):
            part = members[at : at + ROWS]
            canvas = torch.full((len(part), size + new_tokens), MASK_ID)
            canvas[:, :size] = torch.tensor([list(prompts[i]) for i in part])
            done = fill(net, canvas, size, temperature, rng, block, per_step)
            for i, row in zip(part, done[:, size:].tolist(), strict=True):
                end = next((n + 1 for n, t in enumerate(row) if t in ENDS), len(row))
                out[i] = row[:end]
    return out


@torch.no_grad()
def generate_causal(
    net: Network, prompt: Sequence[int], new_tokens: int, temperature: float, seed: int = 0
) -> list[int]:
    """One continuation by the autoregressive twin, without a cache."""
    rng = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(new_tokens):
        logits = F.linear(net.hidden(torch.tensor([ids]))[0, -1], net.embed)
        logits[BANNED] = float("-inf")
        if temperature > 0:
            u = torch.rand(logits.shape, generator=rng).clamp_(1e-9, 1 - 1e-7)
            logits = logits - temperature * torch.log(-torch.log(u))
        ids.append(int(logits.argmax()))
        if ids[-1] in ENDS:
            break
    return ids[len(prompt) :]
