"""Owns the figures of the model card: measures the shipped folders and writes one JSON file."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from training.data import (
    HELD_OUT_REAL,
    NOUNS,
    Stories,
    read_definitions,
    read_stories,
    with_article,
)
from training.layout import load_published
from training.model import Network
from training.sampler import ENDS, fill, generate, generate_causal
from training.tasks import HOLES, draw_digits, draw_row, row_ask, row_is_right, task_text
from training.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, MASK_ID, USER_ID

PROMPT_TOKENS = 8
NEW_TOKENS = 128


class Judge:
    """A causal model made elsewhere that scores texts."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = model.eval()
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @torch.no_grad()
    def score(self, text: str, skip: int) -> tuple[float, int]:
        """Negative log-likelihood of the tokens from character `skip` on, and their number."""
        enc = self.tok.encode(text, add_special_tokens=False)
        ids = torch.tensor([[1, *enc.ids]])
        logits = self.model(ids).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        kept = torch.tensor([end > skip for _, end in enc.offsets])
        return float(loss[kept].sum()), int(kept.sum())

    def perplexity(self, texts: Sequence[tuple[str, str]]) -> float:
        """Per-token perplexity of the continuations of (prompt, continuation) pairs."""
        total, count = 0.0, 0
        for prompt, rest in texts:
            if rest.strip():
                nll, n = self.score(prompt + rest, len(prompt))
                total, count = total + nll, count + n
        return math.exp(total / max(count, 1))


def repeated(texts: Sequence[str]) -> float:
    """Mean share of a text's 4-grams of words that occurred in it before."""
    shares: list[float] = []
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / max(len(shares), 1)


class Evaluation:
    """The models, the tokenizer and the held-out texts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.net = load_published(args.model)
        self.tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.stories: Stories = read_stories(args.texts)

    def ids(self, text: str) -> list[int]:
        """Ids without specials."""
        out: list[int] = self.tok.encode(text, add_special_tokens=False).ids
        return out

    def text(self, ids: Sequence[int]) -> str:
        """Text without specials."""
        out: str = self.tok.decode(list(ids), skip_special_tokens=True)
        return out

    def chat(self, ask: str) -> list[int]:
        """A request in chat form, up to where the reply begins."""
        return [BOS_ID, USER_ID, *self.ids(ask), ASSISTANT_ID]

    def completions(self, temperatures: Sequence[float], count: int) -> dict[str, object]:
        """Judge's perplexity and repetition of story completions, and of the held-out stories."""
        judge = Judge(self.args.judge)
        half = count // 2
        texts = self.stories.held_real[:half] + self.stories.held_sampled[: count - half]
        prompts = [[BOS_ID, *self.ids(t)[:PROMPT_TOKENS]] for t in texts]
        heads = [self.text(p) for p in prompts]
        own = [
            (h, self.text(self.ids(t)[PROMPT_TOKENS : PROMPT_TOKENS + NEW_TOKENS]))
            for h, t in zip(heads, texts, strict=True)
        ]
        out: dict[str, object] = {
            "samples": count,
            "held_out_perplexity": judge.perplexity(own),
            "held_out_perplexity_tinystories": judge.perplexity(own[:half]),
            "held_out_perplexity_sampled": judge.perplexity(own[half:]),
            "held_out_repeated_4grams": repeated([a + b for a, b in own]),
        }
        for temperature in temperatures:
            for block in self.args.story_blocks:
                replies = generate(self.net, prompts, NEW_TOKENS, temperature, block, seed=11)
                pairs = [(h, self.text(r)) for h, r in zip(heads, replies, strict=True)]
                out[f"temperature {temperature}, blocks of {block}"] = {
                    "perplexity": judge.perplexity(pairs),
                    "repeated_4grams": repeated([a + b for a, b in pairs]),
                    "ended": sum(r[-1] in ENDS for r in replies) / count,
                    "mean_tokens": sum(map(len, replies)) / count,
                    "examples": [a + "|" + b for a, b in pairs[:3] + pairs[-3:]],
                }
        return out

    def replies(self, temperature: float) -> dict[str, object]:
        """Do chat replies end by themselves?"""
        rng = random.Random(5)
        nouns = sorted(NOUNS)
        asks: list[tuple[str, str]] = []
        for _ in range(32):
            a, b = rng.sample(nouns, 2)
            asks.append(
                ("story", f"Tell me a story about {with_article(a)} and {with_article(b)}.")
            )
        words = read_definitions(self.args.texts, self.stories)
        asks += [("definition", d.asks[0]) for d in rng.sample(words, 24)]
        for _ in range(16):
            asks.append(("task", task_text(draw_digits(rng, True))[0]))
        out = generate(self.net, [self.chat(a) for _, a in asks], NEW_TOKENS, temperature, seed=13)
        ended = [r[-1] in ENDS for r in out]
        result: dict[str, object] = {
            "temperature": temperature,
            "prompts": len(asks),
            "ended": sum(ended) / len(asks),
        }
        for kind in ("story", "definition", "task"):
            mine = [i for i, (k, _) in enumerate(asks) if k == kind]
            result[kind] = {
                "ended": sum(ended[i] for i in mine) / len(mine),
                "mean_tokens": sum(len(out[i]) for i in mine) / len(mine),
                "examples": [asks[i][1] + " -> " + self.text(out[i]) for i in mine[:5]],
            }
        return result

    def task(self, count: int) -> dict[str, object]:
        """Exact answers of held-out running totals at several tokens per forward."""
        rng = random.Random(5)
        pairs = [task_text(draw_digits(rng, True)) for _ in range(count)]
        prompts = [self.chat(a) for a, _ in pairs]
        result: dict[str, object] = {"instances": count, "temperature": 0}
        for per_step in (1, 2, 4, 8):
            room = NEW_TOKENS if per_step == 1 else 32
            out = generate(self.net, prompts, room, 0.0, per_step=per_step)
            right = [
                self.text(r) == want and r[-1] in ENDS
                for r, (_, want) in zip(out, pairs, strict=True)
            ]
            result[f"exact at {per_step} per forward"] = sum(right) / count
        return result

    def filling(self, count: int) -> dict[str, object]:
        """Right rows of held-out each-digit-once instances at several tokens per forward."""
        rng = random.Random(6)
        result: dict[str, object] = {"instances of each size": count, "temperature": 0}
        for holes in HOLES:
            rows = [draw_row(rng, True, holes) for _ in range(count)]
            prompts = [self.chat(row_ask(row)) for row in rows]
            figures: dict[str, float] = {}
            for per_step in (1, 2, 4, 8):
                out = generate(self.net, prompts, 32, 0.0, per_step=per_step)
                right = [
                    row_is_right(row, self.text(reply)) and reply[-1] in ENDS
                    for row, reply in zip(rows, out, strict=True)
                ]
                figures[f"right at {per_step} per forward"] = sum(right) / count
            result[f"{holes} holes"] = figures
        return result

    @torch.no_grad()
    def bound(self, stories: Sequence[str], draws: int) -> dict[str, float]:
        """LLaDA's Monte Carlo bound: mask exactly l of L tokens, weigh by L / l."""
        rng = torch.Generator().manual_seed(3)
        bits, tokens, size = 0.0, 0, 0
        for story in stories:
            ids = torch.tensor([BOS_ID, *self.ids(story), EOS_ID])
            n = len(ids) - 1
            if n > self.net.shape.positions - 1:
                continue
            offset = float(torch.rand((), generator=rng))
            counts = ((torch.arange(draws) + offset) / draws * n).long().clamp(0, n - 1) + 1
            order = torch.rand(draws, n, generator=rng).argsort(-1).argsort(-1)
            masked = F.pad(order < counts[:, None], (1, 0))
            rows = ids.repeat(draws, 1)
            logits = self.net(torch.where(masked, MASK_ID, rows))
            ce = F.cross_entropy(logits.transpose(1, 2), rows, reduction="none")
            nll = ((ce * masked).sum(-1) * n / counts).mean()
            bits += float(nll) / math.log(2)
            tokens, size = tokens + n, size + len(story.encode())
        return {"bits_per_token": bits / tokens, "bits_per_byte": bits / size, "tokens": tokens}

    @torch.no_grad()
    def exact(self, twin: Network, stories: Sequence[str]) -> dict[str, float]:
        """The twin's own bits on the same texts."""
        bits, tokens, size = 0.0, 0, 0
        for story in stories:
            ids = torch.tensor([BOS_ID, *self.ids(story), EOS_ID])
            n = len(ids) - 1
            if n > self.net.shape.positions - 1:
                continue
            ce = F.cross_entropy(twin(ids[None, :-1])[0], ids[1:], reduction="sum")
            bits += float(ce) / math.log(2)
            tokens, size = tokens + n, size + len(story.encode())
        return {"bits_per_token": bits / tokens, "bits_per_byte": bits / size, "tokens": tokens}

    def gaps(self, temperature: float, count: int = 6) -> list[str]:
        """Held-out stories with twelve tokens in their middle filled anew."""
        rng = torch.Generator().manual_seed(17)
        out: list[str] = []
        for story in self.stories.held_sampled[-count:]:
            ids = torch.tensor([[BOS_ID, *self.ids(story)[:96]]])
            canvas = ids.clone()
            canvas[:, 40:52] = MASK_ID
            done = fill(self.net, canvas, 40, temperature, rng)[0].tolist()
            was = self.text(ids[0, 40:52].tolist())
            out.append(
                self.text(done[20:40])
                + " [["
                + self.text(done[40:52])
                + "]] "
                + self.text(done[52:64])
                + "  (was:"
                + was
                + ")"
            )
        return out


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--texts", type=Path, required=True)
    p.add_argument("--judge", type=Path, required=True, help="folder of stories15M")
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--twin", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--temperature", type=float, default=0.7, help="of replies and gaps")
    p.add_argument("--temperatures", type=float, nargs="*", default=[0.7, 0.5])
    p.add_argument("--story-blocks", type=int, nargs="*", default=[32])
    p.add_argument("--samples", type=int, default=64)
    p.add_argument("--instances", type=int, default=200)
    p.add_argument("--draws", type=int, default=24)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--parts", default="task,filling,replies,gaps,completions,bits,twin")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    run = Evaluation(args)
    parts = args.parts.split(",")
    result: dict[str, object] = {}
    if args.out.exists():
        result = json.loads(args.out.read_text(encoding="utf-8"))

    def put(name: str, value: object) -> None:
        result[name] = value
        print(name, json.dumps(value, indent=1, ensure_ascii=False), flush=True)
        text = json.dumps(result, indent=1, ensure_ascii=False)
        args.out.write_text(text + "\n", encoding="utf-8")

    if "task" in parts:
        put("running_totals", run.task(args.instances))
    if "filling" in parts:
        put("each_digit_once", run.filling(args.instances))
    if "replies" in parts:
        put("chat_replies", run.replies(args.temperature))
    if "gaps" in parts:
        put("gap_filling", run.gaps(args.temperature))
    if "completions" in parts:
        put("story_completion", run.completions(args.temperatures, args.samples))
    if "bits" in parts:
        for name, texts in (
            ("tinystories", run.stories.held_real[: HELD_OUT_REAL // 2]),
            ("sampled", run.stories.held_sampled[:50]),
        ):
            put(f"bound_{name}", run.bound(texts, args.draws))
            if args.twin is not None and (args.twin / "config.json").exists():
                twin = load_published(args.twin)
                put(f"twin_{name}", run.exact(twin, texts))
    if "twin" in parts and args.twin is not None:
        twin = load_published(args.twin)
        asks = ["Tell me a story about a dog and a ball.", "What is a backpack?"]
        prompts = [run.chat(a) for a in asks] + [[BOS_ID, *run.ids("Once upon a time")]]
        lines = [
            run.text(q) + "|" + run.text(generate_causal(twin, q, NEW_TOKENS, 0.7)) for q in prompts
        ]
        put("twin_samples", lines)


if __name__ == "__main__":
    main()
