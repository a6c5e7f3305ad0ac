"""Owns the network: Llama blocks, with or without a causal mask, laid out for fast training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


@dataclass
class Shape:
    """Sizes of the network; causal makes it the autoregressive twin."""

    vocab: int = 4096
    width: int = 192
    layers: int = 6
    heads: int = 6
    hidden: int = 512
    positions: int = 512
    theta: float = 10000.0
    causal: bool = False

    def as_dict(self) -> dict[str, int | float | bool]:
        """Plain values for a checkpoint."""
        return asdict(self)


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the rotate-half form, positions x head width."""
    dim = shape.width // shape.heads
    freq = 1.0 / shape.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(shape.positions, dtype=torch.float32), freq)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (rows, heads, length, head width)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class HeadLoss(torch.autograd.Function):
    """Head and weighted mean cross-entropy in one, with the gradients made on the way."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, embed: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss; one buffer serves as logits, probabilities and their gradient."""
        buf = (h @ embed.t()).float()  # a product may be in bfloat16
        top = buf.amax(dim=-1, keepdim=True)
        picked = buf.gather(-1, labels[:, None])
        sums = buf.sub_(top).exp_().sum(dim=-1, keepdim=True)
        share = (weights / weights.sum().clamp_min(1e-6))[:, None]
        loss = ((sums.log() + top - picked) * share).sum()
        buf.mul_(share / sums)
        buf.scatter_add_(-1, labels[:, None], -share)
        ctx.save_for_backward((buf @ embed).to(h.dtype), (buf.t() @ h).to(embed.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients made before."""
        grad_h, grad_embed = ctx.saved_tensors
        return grad_h * grads[0], grad_embed * grads[0], None, None


class Network(nn.Module):
    """Weights are stacked over layers, so that the optimiser can treat them in one batch.

    attn holds query, key, value and output matrices: (layers, 4, width, width).
    mlp holds gate, up and the transposed down matrices: (layers, 3, hidden, width).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        w, n = shape.width, shape.layers
        self.embed = nn.Parameter(torch.randn(shape.vocab, w) * 0.02)
        self.attn = nn.Parameter(torch.randn(n, 4, w, w) * 0.5 * w**-0.5)
        self.mlp = nn.Parameter(torch.randn(n, 3, shape.hidden, w) * 0.5 * w**-0.5)
        self.norms = nn.Parameter(torch.ones(2 * n + 1, w))
        with torch.no_grad():
            self.attn[:, 3].mul_(0.2)
            self.mlp[:, 2].mul_(0.2)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normed last hidden states, (rows, length, width)."""
        s = self.shape
        rows, length = ids.shape
        cos, sin = self.cos[:length], self.sin[:length]
        x = F.embedding(ids, self.embed)
        norms = self.norms.unbind(0)
        for i, (attn, mlp) in enumerate(zip(self.attn.unbind(0), self.mlp.unbind(0), strict=True)):
            h = F.rms_norm(x, (s.width,), norms[2 * i], NORM_EPS)
            qkv = F.linear(h, attn[:3].reshape(3 * s.width, s.width))
            q, k, v = qkv.view(rows, length, 3, s.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(
                rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=s.causal
            )
            x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), attn[3])
            h = F.rms_norm(x, (s.width,), norms[2 * i + 1], NORM_EPS)
            gate, up = F.linear(h, mlp[:2].reshape(-1, s.width)).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ mlp[2]
        return F.rms_norm(x, (s.width,), norms[-1], NORM_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits at every position."""
        return F.linear(self.hidden(ids), self.embed)

    def loss(self, ids: Tensor, where: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross-entropy; the head runs only over flat positions `where`."""
        h = self.hidden(ids).reshape(-1, self.shape.width).index_select(0, where)
        loss: Tensor = HeadLoss.apply(h, self.embed, labels, weights)  # type: ignore[no-untyped-call]
        return loss
