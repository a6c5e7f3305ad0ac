"""What a constraint costs in a step at a vocabulary of 126,464, beside that step's own last product.

python -m benchmarks.constraints --json docs/constraints.json: prints a table. The ratio is to the product of the block's hidden
states with the head's matrix (hidden size 1024) alone, a part of any step of such a model. And what
the positions save that are filled because nothing else may stand there, on the embedded model.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.report import Row, markdown, write
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine.constrained import Classes
from vdiff_grpc.engine.constraints.automaton import TokenAutomaton, Vocabulary
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.constraints.kinds import (
    CallsConstraint,
    Constraint,
    JsonSchemaConstraint,
    RegexConstraint,
)
from vdiff_grpc.engine.decoding.best_path import best_path
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import TextPrompt
from vdiff_grpc.engine.strategies import (
    ConfidenceThreshold,
    EntropyBound,
    FixedSchedule,
    Strategy,
)
from vdiff_grpc.engine.types import Request, RequestParams

VOCABULARY, HIDDEN, BLOCK = 126464, 1024, 32
COLUMNS = ["constraint", "built in", "states", "classes", "a step", "the product", "share"]
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
    },
    "required": ["name", "age", "tags"],
}
_TOOLS = ((0, "tell", json.dumps(_PERSON)),)
PERSON = "schema with three properties"
ANSWERS = 4
CASES: dict[str, Constraint] = {
    "[0-9]+": RegexConstraint("[0-9]+"),
    PERSON: JsonSchemaConstraint(json.dumps(_PERSON)),
    "json_object": JsonSchemaConstraint('{"type":"object"}'),
    "calls of a tool with three properties": CallsConstraint(_TOOLS, tagged=True, several=True),
    "the same, or text": CallsConstraint(_TOOLS, tagged=True, several=True, free=True),
}


def vocabulary() -> Vocabulary:
    """Random pieces of letters, digits and JSON's signs, of 1 to 10 characters."""
    rng = random.Random(0)
    signs = 'etaoin shrdlu0123456789{}[]":,._-'
    pieces = {bytes([byte]) for byte in range(1, 256)}
    while len(pieces) < VOCABULARY - 2:
        pieces.add("".join(rng.choices(signs, k=rng.randint(1, 10))).encode())
    return Vocabulary(dict(enumerate(sorted(pieces))), (VOCABULARY - 1,), VOCABULARY)


def milliseconds(work: Callable[[], object]) -> float:
    """Of CPU: one thread works."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1e3


class Cases:
    """Prepared constraints and scores. seconds: what building each took."""

    def __init__(self) -> None:
        compiler = Compiler(vocabulary)
        self.scores = torch.randn(BLOCK, VOCABULARY)
        self.hidden, self.head = torch.randn(BLOCK, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
        self.automata: dict[str, TokenAutomaton] = {}
        self.seconds: dict[str, float] = {}
        for name, constraint in CASES.items():
            begin = time.perf_counter()
            self.automata[name] = compiler.build(constraint)
            self.seconds[name] = time.perf_counter() - begin
        self._ends = {
            name: automaton.fits(2 * BLOCK, exact=False)[BLOCK]
            for name, automaton in self.automata.items()
        }
        self._classes = {n: Classes(a, torch.device("cpu")) for n, a in self.automata.items()}

    def product(self) -> None:
        self.hidden @ self.head.T

    def step(self, name: str) -> None:
        """What the constraint adds to a step of one row."""
        automaton, classes = self.automata[name], self._classes[name]
        fixed = np.full(BLOCK, -1, dtype=np.int32)
        path, _ = best_path(automaton, 0, self._ends[name], fixed, classes.best(self.scores))
        classes.tokens(self.scores, path)


def row(cases: Cases, name: str, repeats: int) -> Row:
    """Both sides in turn; medians."""
    products, steps = [], []
    for _ in range(repeats):
        products.append(milliseconds(cases.product))
        steps.append(milliseconds(lambda: cases.step(name)))
    num_states, num_classes = cases.automata[name].table.shape
    product, step = statistics.median(products), statistics.median(steps)
    return {
        "constraint": f"`{name}`",
        "built in": f"{cases.seconds[name]:.1f} s",
        "states": num_states,
        "classes": num_classes,
        "a step": f"{step:.1f} ms",
        "the product": f"{product:.0f} ms",
        "share": f"{step / product:.1%}",
    }


def passes(engine: Engine, strategy: Strategy, *, free: bool) -> int:
    """Forward passes of some JSON answers; without the free commits when they are not wanted."""
    constrainer = engine.runner.constrainer
    draw, count = constrainer.draw_, 0

    def draw_alone(*arguments: Any) -> None:
        draw(*arguments)

    if not free:
        constrainer.draw_ = draw_alone  # type: ignore[method-assign, assignment]
    for seed in range(ANSWERS):
        steps = 32 if strategy.HAS_STEPS else None
        params = RequestParams(
            max_new_tokens=64, steps=steps, seed=seed, temperature=1.0, strategy=strategy
        )
        request = Request(TextPrompt("A person: "), params, constraint=CASES[PERSON])
        count += engine.generate(request).outputs[0].forward_passes
    constrainer.draw_ = draw  # type: ignore[method-assign]
    return count


def saved(engine: Engine, strategy: Strategy) -> Row:
    without, with_ = (passes(engine, strategy, free=free) for free in (False, True))
    return {
        "strategy": f"`{strategy.NAME}`",
        "answers": ANSWERS,
        "passes without": without,
        "with": with_,
        "saved": f"{1 - with_ / without:.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = Cases()
    rows = [row(cases, name, asked.repeats) for name in CASES]
    print(markdown(rows, COLUMNS))
    engine = Engine(ServerConfig().engine_config())
    strategies = (FixedSchedule(), ConfidenceThreshold(0.9), EntropyBound(0.1))
    savings = [saved(engine, strategy) for strategy in strategies]
    print(markdown(savings, list(savings[0])))
    shape = {"vocabulary": VOCABULARY, "hidden": HIDDEN, "block": BLOCK}
    write(asked.json, rows, repeats=asked.repeats, free_commits=savings, **shape)


if __name__ == "__main__":
    main()
