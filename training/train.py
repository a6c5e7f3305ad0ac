"""Owns the trainer of both models: masking, schedule by wall-clock, checkpoints."""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.data import Batch, Mixture, make_batch
from training.layout import load_published
from training.model import Network, Shape
from training.optim import Muon
from training.tokenizer import MASK_ID

BLOCK = 32
# (canvas length, weight) of the main batches and of the batches of short chat rows
LENGTHS = ((96, 2.0), (128, 3.0), (160, 3.0), (192, 2.5), (256, 1.5), (384, 0.15), (512, 0.15))
SHORT_LENGTHS = ((32, 3.0), (40, 1.0), (48, 1.0))
# shares of stories, requests for stories, definitions, running totals, each digit once
MAIN_SHARES = (0.76, 0.19, 0.025, 0.025, 0.0)
SECOND_MAIN_SHARES = (0.70, 0.17, 0.025, 0.025, 0.08)
SECOND_SHORT_SHARES = (0.0, 0.0, 0.15, 0.20, 0.65)
FULL_FILL = 4  # EOS positions after a text that count in full
FILL_WEIGHT = 0.03
# shares of the three forms of masking at the beginning of the run and from its half on
FORMS_EARLY, FORMS_LATE = (0.7, 0.2, 0.1), (0.4, 0.2, 0.4)


@dataclass
class Example:
    """What the network is given: inputs, flat positions, labels and weights of the loss."""

    inputs: Tensor
    where: Tensor
    labels: Tensor
    weights: Tensor


def base_weights(batch: Batch) -> np.ndarray:
    """1 on text and the first EOS positions after it, little on the rest."""
    at: np.ndarray = np.arange(batch.ids.shape[1])[None, :]
    over = at - batch.length[:, None]
    return np.where(over < FULL_FILL, 1.0, FILL_WEIGHT).astype(np.float32)


def mask_batch(
    batch: Batch,
    rng: np.random.Generator,
    most: float,
    forms: tuple[float, float, float],
    skew: float = 1.0,
) -> Example:
    """LLaDA's masking, on the whole row, behind a kept prefix, or within one block.

    The last form is what the decoder sees: everything before a block known, everything after
    it masked. There the loss counts in the block, and little after it.
    """
    rows, length = batch.ids.shape
    at = np.arange(length)[None, :]
    free = batch.free[:, None]
    powers = np.where(free, 1.0, skew)
    ratio = 0.02 + (most - 0.02) * rng.random((rows, 1)) ** powers
    weight = base_weights(batch)
    start = batch.start[:, None].copy()
    plain = batch.start == 1
    form = np.asarray(rng.choice(3, size=rows, p=forms))[:, None]
    # chat rows keep the prompt, except one in ten
    opened = (~plain & (rng.random(rows) < 0.1))[:, None]
    start = np.where(opened, 1, start)
    text = np.minimum(batch.length, length)[:, None]
    offset = (rng.random((rows, 1)) * np.maximum(text - start, 1)).astype(np.int64)
    kept = np.where(form == 0, 0, offset)
    # blocks begin at multiples of 32 after a prompt; plain texts have prompts of any length
    kept = np.where((form == 2) & ~plain[:, None], kept // BLOCK * BLOCK, kept)
    kept = np.where((form == 1) & ~plain[:, None], 0, kept)
    begin = start + kept
    masked = (rng.random((rows, length)) < ratio) & (at >= begin)
    after = (form == 2) & (at >= begin + BLOCK)
    masked |= after
    weight = np.where(after, weight * 0.05, weight)
    if skew > 1:  # short replies: half of the rows from left to right, one token at a time
        chain = (rng.random((rows, 1)) < 0.5) & ~plain[:, None] & ~free
        masked = np.where(chain, at >= start + offset, masked)
        weight = np.where(chain & (at > start + offset), weight * 0.05, weight)
    where = np.flatnonzero(masked)
    flat = batch.ids.reshape(-1)
    return Example(
        torch.from_numpy(np.where(masked, MASK_ID, batch.ids)),
        torch.from_numpy(where),
        torch.from_numpy(flat[where]),
        torch.from_numpy(weight.reshape(-1)[where]),
    )


def causal_batch(batch: Batch) -> Example:
    """Next-token prediction on the same rows; prompts and long fill count little."""
    rows, length = batch.ids.shape
    at = np.arange(length)[None, :]
    weight = np.where(at < batch.start[:, None], 0.1, base_weights(batch))[:, 1:]
    weight = np.where(at[:, 1:] > batch.length[:, None] + 1, 0.0, weight).astype(np.float32)
    where = (np.arange(rows)[:, None] * length + at[:, :-1]).reshape(-1)
    keep = weight.reshape(-1) > 0
    return Example(
        torch.from_numpy(batch.ids),
        torch.from_numpy(where[keep]),
        torch.from_numpy(batch.ids[:, 1:].reshape(-1)[keep]),
        torch.from_numpy(weight.reshape(-1)[keep]),
    )


def rate(part: float, decay_from: float) -> float:
    """Factor on the learning rates: short warm-up, then down to zero in a line."""
    return min(1.0, part / 0.01 + 0.02) * min(1.0, max(0.0, (1 - part) / (1 - decay_from)))


class Trainer:
    """One run: network, optimisers, data and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.shape = Shape(layers=args.layers, causal=args.causal)
        self.net = Network(self.shape)
        tok = Tokenizer.from_file(str(args.tokenizer))
        if args.begin_with is not None:
            self.net = load_published(args.begin_with).train()
            self.shape = self.net.shape
        with torch.no_grad():
            # digits occur alike, so their rows would move as one and hide which digit it is
            digits = [tok.token_to_id(str(d)) for d in range(10)]
            if args.begin_with is None:
                self.net.embed[digits] = torch.randn(10, self.shape.width) * 0.08
        hidden = [self.net.attn, self.net.mlp]
        other = [self.net.embed, self.net.norms]
        self.optims: list[torch.optim.Optimizer]
        if args.adam_only:
            groups = hidden + other
            self.optims = [torch.optim.AdamW(groups, lr=args.adam_lr, betas=(0.9, 0.98))]
        else:
            adam = torch.optim.AdamW(other, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
            self.optims = [Muon(hidden, lr=args.muon_lr), adam]
        self.peaks = [o.param_groups[0]["lr"] for o in self.optims]
        self.elapsed, self.step, self.tokens = 0.0, 0, 0
        self.stopped = False
        self.log: list[dict[str, float]] = []
        if args.resume and args.checkpoint.exists():
            self.load()
        seed = args.seed + 7919 * self.step
        self.rng = np.random.default_rng(seed)
        self.pick = random.Random(seed)
        self.mix = Mixture(args.texts, tok, seed, args.cache, args.keep)

    def save(self) -> None:
        """Write a checkpoint in one step."""
        state = {
            "shape": self.shape.as_dict(),
            "net": self.net.state_dict(),
            "optims": [o.state_dict() for o in self.optims],
            "clock": (self.elapsed, self.step, self.tokens),
            "log": self.log,
        }
        part = self.args.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.args.checkpoint)

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.args.checkpoint, weights_only=True)
        self.net.load_state_dict(state["net"])
        for optim, saved in zip(self.optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        self.elapsed, self.step, self.tokens = state["clock"]
        self.log = state["log"]

    def draw(self) -> tuple[Batch, Batch]:
        """A main batch and a small one of definitions and task rows."""
        length = self.pick.choices([x for x, _ in LENGTHS], [w for _, w in LENGTHS])[0]
        rows = max(4, self.args.batch_tokens // length)
        second = self.args.second_stage
        main = make_batch(self.mix, rows, length, SECOND_MAIN_SHARES if second else MAIN_SHARES)
        short = self.pick.choices([x for x, _ in SHORT_LENGTHS], [w for _, w in SHORT_LENGTHS])[0]
        share = self.args.task_share
        shares = SECOND_SHORT_SHARES if second else (0.0, 0.0, 1 - share, share, 0.0)
        if short == 32:  # too short for definitions
            shares = (0.0, 0.0, 0.0, *shares[3:])
        rows = max(4, self.args.short_tokens // short)
        return main, make_batch(self.mix, rows, short, shares)

    def update(self, part: float) -> tuple[float, float]:
        """One optimiser step; returns the two losses."""
        most = min(1.0, 0.3 + 0.7 * part / self.args.curriculum)
        late = 1.0 if self.args.second_stage else min(1.0, 2 * part)
        a, b, c = (x * (1 - late) + y * late for x, y in zip(FORMS_EARLY, FORMS_LATE, strict=True))
        forms = (a, b, c)
        losses: list[float] = []
        small = self.args.short_weight
        for batch, weight, skew in zip(self.draw(), (1 - small, small), (1.0, 2.0), strict=True):
            if self.shape.causal:
                ex = causal_batch(batch)
            else:
                ex = mask_batch(batch, self.rng, most, forms, skew)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                loss = self.net.loss(ex.inputs, ex.where, ex.labels, ex.weights)
            torch.autograd.backward(loss * weight)
            losses.append(float(loss.detach()))
            self.tokens += batch.ids.size
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        factor = rate(part, self.args.decay_from)
        for optim, peak in zip(self.optims, self.peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * factor
            optim.step()
            optim.zero_grad(set_to_none=True)
        self.step += 1
        return losses[0], losses[1]

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Asked to end: save after the step at hand."""
        self.stopped = True

    def run(self) -> None:
        """Train until the budget is spent."""
        budget = self.args.minutes * 60
        begun, saved = time.monotonic() - self.elapsed, self.elapsed
        sums: list[tuple[float, float]] = []
        signal.signal(signal.SIGTERM, self.stop)
        while self.elapsed < budget and not self.stopped:
            sums.append(self.update(self.elapsed / budget))
            self.elapsed = time.monotonic() - begun
            if self.step % self.args.log_every == 0:
                a, b = np.mean(np.array(sums), axis=0)
                entry = {
                    "step": self.step,
                    "seconds": round(self.elapsed),
                    "tokens": self.tokens,
                    "loss_main": round(float(a), 4),
                    "loss_short": round(float(b), 4),
                }
                self.log.append(entry)
                print(json.dumps(entry), flush=True)
                sums = []
            if self.elapsed - saved > self.args.save_every:
                self.save()
                saved = self.elapsed
        self.save()


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--texts", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--cache", type=Path, help="where to keep the tokenised stories")
    p.add_argument("--keep", type=float, default=0.5, help="share of stories, simplest first")
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--begin-with", type=Path, help="exported folder whose weights to go on from")
    p.add_argument("--second-stage", action="store_true", help="mix in the each-digit-once task")
    p.add_argument("--causal", action="store_true", help="train the autoregressive twin")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--batch-tokens", type=int, default=2048)
    p.add_argument("--short-tokens", type=int, default=1024)
    p.add_argument("--short-weight", type=float, default=0.3, help="of the short batch's loss")
    p.add_argument("--task-share", type=float, default=0.6)
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=3e-3)
    p.add_argument("--adam-only", action="store_true")
    p.add_argument("--decay-from", type=float, default=0.3)
    p.add_argument("--curriculum", type=float, default=0.05)
    p.add_argument("--log-every", type=int, default=50)
    p.add_argument("--save-every", type=float, default=180)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
