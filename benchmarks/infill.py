"""Gaps in held-out sentences: the embedded model, which sees both sides, beside its twin, which cannot.

    python -m benchmarks.infill [--sentences FILE] [--judge FOLDER] [--json FILE]
    python -m benchmarks.infill --draw TEXTS --sentences FILE

One gap of one to five words, at most 10 tokens, in each sentence, filled at temperature 0. `fixed`
knows the gap's number of tokens; `1..10` does not. The twin continues what stands before the gap,
token by token; of its ten lengths the one is taken whose sentence it finds the likeliest, by the
mean over the tokens of gap and rest, or by their sum. Exact: the very text that was taken out.
Perplexity: of the filled sentences, all tokens pooled, under the judge (stories15M in Hugging Face layout).

benchmarks/infill.jsonl has gaps in sentences of held-out stories that were sampled from stories15M;
`--draw` makes such a file of held-out texts of training/ (real: of TinyStories only).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import report
from benchmarks.decoding import DEMO
from training.data import read_stories
from training.evaluate import Judge
from vdiff_grpc.engine import strategies as s
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Finished
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import resolve

SENTENCES = Path(__file__).parent / "infill.jsonl"
LONGEST = 10
_RULES = {
    "one a pass": s.FixedSchedule(),
    "entropy_bound 0.05": s.EntropyBound(0.05),
}


@dataclass(frozen=True, slots=True)
class Gap:
    before: str
    gap: str
    after: str

    def filled(self, text: str) -> str:
        return self.before + text + self.after


@dataclass(frozen=True, slots=True)
class Fill:
    text: str
    length: int
    passes: int


def main() -> None:
    arguments = _arguments()
    tokenizer = Tokenizer.load(str(DEMO))
    assert tokenizer is not None, "the embedded model has one"
    if arguments.draw:
        gaps = draw(arguments.draw, tokenizer, arguments.count, real=arguments.real)
        lines = [json.dumps(asdict(gap)) + "\n" for gap in gaps]
        arguments.sentences.write_text("".join(lines), encoding="utf-8")
        return
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    gaps = [Gap(**json.loads(line)) for line in lines]
    judge = Judge(arguments.judge) if arguments.judge else None
    lengths = [len(tokenizer.encode(gap.gap)) for gap in gaps]
    print(
        f"{report.machine()}\n{len(gaps)} gaps, {sum(lengths) / len(gaps):.2f} tokens on average\n"
    )
    fills = {
        ("the sentence itself", ""): [Fill(g.gap, n, 0) for g, n in zip(gaps, lengths, strict=True)]
    }
    engine = Engine(EngineConfig(str(DEMO), device="cpu", threads=1, max_waiting_rows=4096))
    for name, rule in _RULES.items():
        holes = {
            "fixed": [Hole(n) for n in lengths],
            "1..10": [Hole(max_length=LONGEST)] * len(gaps),
        }
        for kind, wanted in holes.items():
            fills[f"diffusion, {name}", kind] = by_diffusion(engine, rule, gaps, wanted)
            report.progress(f"diffusion, {name}, {kind}")
    fills |= by_twin(tokenizer, gaps, lengths)
    rows = [_row(name, kind, gaps, lengths, found, judge) for (name, kind), found in fills.items()]
    print(report.table(rows))
    report.write(arguments.json, rows, sentences=len(gaps))


def draw(texts: Path, tokenizer: Tokenizer, count: int, *, real: bool) -> list[Gap]:
    """Gaps in held-out sentences of 8 to 24 words; two words at least on either side."""
    stories = read_stories(texts)
    rng, gaps = random.Random(0), list[Gap]()
    for story in stories.held_real if real else stories.held_sampled:
        sentences = re.split(r'(?<=[.!?"])\s+', story.replace("\n", " "))
        fitting = [x.split() for x in sentences if 8 <= len(x.split()) <= 24]
        if not fitting:
            continue
        words, size = rng.choice(fitting), rng.randint(1, 5)
        if len(words) < size + 4:
            continue
        begin = rng.randint(2, len(words) - size - 2)
        before, gap, after = words[:begin], words[begin : begin + size], words[begin + size :]
        found = Gap(" ".join(before), " " + " ".join(gap), " " + " ".join(after))
        if len(tokenizer.encode(found.gap)) <= LONGEST:
            gaps.append(found)
    return gaps[:count]


def by_diffusion(
    engine: Engine, rule: s.Strategy, gaps: Sequence[Gap], holes: Sequence[Hole]
) -> list[Fill]:
    params = RequestParams(temperature=0.0, seed=0, strategy=rule)
    for key, (gap, hole) in enumerate(zip(gaps, holes, strict=True)):
        request = Request(InfillPrompt((gap.before, hole, gap.after)), params)
        engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))
    ended: dict[int, Finished] = {}
    while engine.has_work:
        ended |= {key: event for key, event in engine.step() if isinstance(event, Finished)}
    outputs = [ended[key].outputs[0] for key in range(len(gaps))]
    return [Fill(o.text, len(o.tokens.ids), o.forward_passes) for o in outputs]


@torch.inference_mode()
def by_twin(
    tokenizer: Tokenizer, gaps: Sequence[Gap], lengths: Sequence[int]
) -> dict[tuple[str, str], list[Fill]]:
    """Greedy continuations, and of all lengths the likeliest. A pass for each token, and for each candidate."""
    twin = AutoModelForCausalLM.from_pretrained(DEMO / "twin", dtype=torch.float32).eval()
    never = torch.tensor([0, 1, 2, 3, 4, 5])  # its special tokens
    found: dict[tuple[str, str], list[Fill]] = {}
    for gap, length in zip(gaps, lengths, strict=True):
        before, after = [1, *tokenizer.encode(gap.before)], tokenizer.encode(gap.after)
        ids = before.copy()
        for _ in range(LONGEST):
            logits = twin(torch.tensor([ids])).logits[0, -1]
            logits[never] = -torch.inf
            ids.append(int(logits.argmax()))
        fill = ids[len(before) :]
        sums, means = [], []
        for count in range(1, LONGEST + 1):
            whole = torch.tensor([before + fill[:count] + after])
            scores = twin(whole).logits[0, len(before) - 1 : -1].log_softmax(-1)
            likelihoods = scores.gather(1, whole[0, len(before) :].unsqueeze(1))
            sums.append(float(likelihoods.sum()))
            means.append(float(likelihoods.mean()))

        def cut(count: int, more: int, fill: list[int] = fill) -> Fill:
            data = b"".join(map(tokenizer.token_bytes, fill[:count]))
            return Fill(data.decode(errors="replace"), count, count + more)

        found.setdefault(("twin", "fixed"), []).append(cut(length, 0))
        for name, scored in (("mean", means), ("sum", sums)):
            best = 1 + scored.index(max(scored))
            found.setdefault((f"twin, likeliest {name}", "1..10"), []).append(
                Fill(cut(best, 0).text, best, 2 * LONGEST)
            )
    report.progress("twin")
    return found


def _row(
    name: str,
    kind: str,
    gaps: Sequence[Gap],
    lengths: Sequence[int],
    fills: Sequence[Fill],
    judge: Judge | None,
) -> dict[str, Any]:
    pairs = list(zip(gaps, fills, strict=True))
    total, count = 0.0, 0
    for gap, fill in pairs if judge else ():
        assert judge is not None
        loss, tokens = judge.score(gap.filled(fill.text), 0)
        total, count = total + loss, count + tokens
    right = sum(fill.length == length for fill, length in zip(fills, lengths, strict=True))
    return {
        "filled by": name,
        "gap": kind,
        "exact": sum(fill.text == gap.gap for gap, fill in pairs) / len(pairs),
        "right length": right / len(pairs),
        "mean length": sum(fill.length for fill in fills) / len(pairs),
        "perplexity": math.exp(total / count) if count else math.nan,
        "passes": sum(fill.passes for fill in fills) / len(pairs),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="lines of JSON")
    parser.add_argument("--judge", type=Path, help="folder of stories15M; none: no perplexity")
    parser.add_argument("--json", default="", help="file for the figures")
    parser.add_argument("--draw", type=Path, help="write --sentences from these texts, and end")
    parser.add_argument("--real", action="store_true", help="with --draw: TinyStories only")
    parser.add_argument("--count", type=int, default=200, help="with --draw: sentences at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
