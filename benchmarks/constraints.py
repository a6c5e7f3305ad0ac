"""What a constraint costs in a step at a vocabulary of 126,464, beside that step's own last product.

python -m benchmarks.constraints: prints a table. The ratio is to the product of the block's hidden
states with the head's matrix (hidden size 1024) alone, a part of any step of such a model.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from vdiff_grpc.engine.constrained import Classes
from vdiff_grpc.engine.constraints.automaton import Vocabulary
from vdiff_grpc.engine.constraints.compiler import Compiler
from vdiff_grpc.engine.constraints.kinds import Constraint, JsonSchemaConstraint, RegexConstraint
from vdiff_grpc.engine.decoding.best_path import best_path

VOCABULARY, HIDDEN, BLOCK = 126464, 1024, 32
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
    },
    "required": ["name", "age", "tags"],
}
CASES: dict[str, Constraint] = {
    "regex [0-9]+": RegexConstraint("[0-9]+"),
    "schema with three properties": JsonSchemaConstraint(json.dumps(_PERSON)),
    "json_object": JsonSchemaConstraint('{"type":"object"}'),
}


def vocabulary() -> Vocabulary:
    """Random pieces of letters, digits and JSON's signs, of 1 to 10 characters."""
    rng = random.Random(0)
    signs = 'etaoin shrdlu0123456789{}[]":,._-'
    pieces = {bytes([byte]) for byte in range(1, 256)}
    while len(pieces) < VOCABULARY - 2:
        pieces.add("".join(rng.choices(signs, k=rng.randint(1, 10))).encode())
    return Vocabulary(dict(enumerate(sorted(pieces))), (VOCABULARY - 1,), VOCABULARY)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats: int = parser.parse_args().repeats
    compiler = Compiler(vocabulary)
    hidden, head = torch.randn(BLOCK, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    scores = torch.randn(BLOCK, VOCABULARY)
    product = median_ms(lambda: hidden @ head.T, repeats)
    print(f"the head's product of {BLOCK} rows: {product:.1f} ms")
    print("constraint | build s | states | classes | ms a step | of the product")
    for name, constraint in CASES.items():
        begin = time.perf_counter()
        automaton = compiler.build(constraint)
        built = time.perf_counter() - begin
        classes = Classes(automaton, torch.device("cpu"))
        ends = automaton.fits(64, exact=False)[32]
        fixed = np.full(BLOCK, -1, dtype=np.int32)

        def step() -> None:
            path, _ = best_path(automaton, 0, ends, fixed, classes.best(scores))  # noqa: B023
            classes.tokens(scores, path)  # noqa: B023

        cost = median_ms(step, repeats)
        shape = automaton.table.shape
        print(f"{name} | {built:.2f} | {shape[0]} | {shape[1]} | {cost:.1f} | {cost / product:.2f}")


if __name__ == "__main__":
    main()
