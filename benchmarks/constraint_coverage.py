"""Which JSON schemas can be held to, and that what is then written is valid.

python -m benchmarks.constraint_coverage --suite JSON-Schema-Test-Suite/tests/draft2020-12 \
    --bench jsonschemabench/data --json docs/constraints-coverage.json

--suite: by keyword, how many of its schemas are built; of their instances, how many of the valid
ones can be written, and how many of the invalid ones (none should).
--bench: by set, how many of its schemas are built, and why not; texts drawn at random from what is
built are looked at by a validator of its own (jsonschema-rs, formats included). None of these data
are part of this project.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import numpy.typing as npt

from benchmarks.report import Row, markdown, progress, write
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine.constraint_checks import compiler_for
from vdiff_grpc.engine.constraints import compiler
from vdiff_grpc.engine.constraints.automaton import token_automaton
from vdiff_grpc.engine.constraints.compiler import text_automaton
from vdiff_grpc.engine.constraints.kinds import ConstraintError, JsonSchemaConstraint
from vdiff_grpc.engine.models import registry
from vdiff_grpc.engine.tokenizer import Tokenizer

Table = npt.NDArray[np.int32]
Accepting = npt.NDArray[np.bool_]

DRAWN_BYTES = 400  # from there on a text is drawn to its end by the shortest way
MOST_FORMS = 240  # ways to write one instance that are tried


@dataclass(slots=True)
class Tally:
    """Of one set of schemas. seconds: of CPU, of each that was built."""

    schemas: int = 0
    built: int = 0
    valid: int = 0
    written: int = 0
    invalid: int = 0
    unsound: int = 0
    drawn: int = 0
    unchecked: int = 0
    seconds: list[float] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def row(self, name: str) -> Row:
        seconds, states = self.seconds or [0.0], self.states or [0]
        return {
            "set": name,
            "schemas": self.schemas,
            "built": self.built,
            "share": f"{self.built / max(self.schemas, 1):.0%}",
            "valid": self.valid,
            "written": self.written,
            "invalid": self.invalid,
            "drawn": self.drawn,
            "unchecked": self.unchecked,
            "unsound": self.unsound,
            "p50_s": round(float(np.percentile(seconds, 50)), 2),
            "p95_s": round(float(np.percentile(seconds, 95)), 2),
            "max_s": round(max(seconds), 2),
            "p95_states": int(np.percentile(states, 95)),
            "refusals": dict(self.refusals.most_common(8)),
        }


class Builder:
    """Builds automata of the embedded model's tokens."""

    def __init__(self) -> None:
        path = ServerConfig().engine_config().model_path
        kept = compiler_for(registry.describe(path), Tokenizer.load(path))
        self._vocabulary = kept.vocabulary()

    def build(self, schema: Any, tally: Tally) -> tuple[Table, Accepting] | None:
        """The automaton over bytes, if there is one over tokens, too."""
        tally.schemas += 1
        begin = _cpu_s()
        try:
            text = json.dumps(schema, ensure_ascii=False)
            table, accepting = text_automaton(JsonSchemaConstraint(text))
            automaton = token_automaton(table, accepting, self._vocabulary)
        except ConstraintError as error:
            tally.refusals[_reason(error)] += 1
            return None
        tally.built += 1
        tally.seconds.append(_cpu_s() - begin)
        tally.states.append(automaton.num_states)
        return table, accepting


def suite(folder: Path, builder: Builder) -> Iterator[tuple[str, Tally]]:
    for file in sorted(folder.rglob("*.json")):
        tally = Tally()
        for case in json.loads(file.read_text(encoding="utf-8")):
            built = builder.build(case["schema"], tally)
            if built is None:
                continue
            for test in case["tests"]:
                accepted = any(accepts(*built, form) for form in forms(test["data"]))
                if test["valid"]:
                    tally.valid += 1
                    tally.written += accepted
                else:
                    tally.invalid += 1
                    tally.unsound += accepted
                    if accepted:
                        progress(f"UNSOUND {file.name}: {case['description']}: {test}")
        yield str(file.relative_to(folder).with_suffix("")), tally


def bench(folder: Path, every: int, draws: int, builder: Builder) -> Iterator[tuple[str, Tally]]:
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        tally = Tally()
        for file in sorted(group.glob("*.json"))[::every]:
            schema = json.loads(file.read_text(encoding="utf-8"))
            if (built := builder.build(schema, tally)) is not None:
                check_draws(schema, built, draws, tally, str(file))
        yield group.name, tally


def check_draws(
    schema: Any, built: tuple[Table, Accepting], draws: int, tally: Tally, name: str
) -> None:
    try:
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    except ValueError:
        tally.unchecked += 1  # not a schema of its own draft
        return
    rng = random.Random(name.rpartition("/")[2])
    to_end = steps_to_end(*built)
    for _ in range(draws):
        text = drawn(*built, to_end, rng).decode()
        tally.drawn += 1
        if not validator.is_valid(json.loads(text)):
            tally.unsound += 1
            error = next(iter(validator.iter_errors(json.loads(text))))
            progress(f"UNSOUND {name}: {text[:300]}: {str(error)[:300]}")


def forms(value: Any) -> Iterator[str]:
    """Ways to write it: with the properties of its objects in other orders, with or without blanks."""
    for ordered in islice(_orders(value), MOST_FORMS):
        for separators in ((", ", ": "), (",", ":")):
            yield json.dumps(ordered, ensure_ascii=False, separators=separators)


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for items in product(*(list(islice(_orders(item), 24)) for item in value)):
            yield list(items)
    elif isinstance(value, dict):
        for names in permutations(value):
            for items in product(*(list(islice(_orders(value[n]), 24)) for n in names)):
                yield dict(zip(names, items, strict=True))
    else:
        yield value


def accepts(table: Table, accepting: Accepting, text: str) -> bool:
    state = 0
    for byte in text.encode("utf-8", "surrogatepass"):
        state = int(table[state, byte])
        if state < 0:
            return False
    return bool(accepting[state])


def steps_to_end(table: Table, accepting: Accepting) -> npt.NDArray[np.int64]:
    """[num_states] the fewest bytes from each state to a text's end."""
    found = np.where(accepting, 0, 1 << 30)
    while True:
        following = np.where(table >= 0, found[table], 1 << 30).min(axis=1) + 1
        better = np.minimum(found, following)
        if (better == found).all():
            return found
        found = better


def drawn(
    table: Table, accepting: Accepting, to_end: npt.NDArray[np.int64], rng: random.Random
) -> bytes:
    """A text of the automaton's, each byte drawn of those that are possible."""
    text, state = bytearray(), 0
    while True:
        possible = np.flatnonzero(table[state] >= 0).tolist()
        if accepting[state] and (not possible or len(text) > DRAWN_BYTES or rng.random() < 0.3):
            return bytes(text)
        if len(text) > DRAWN_BYTES:
            byte = min(possible, key=lambda b: int(to_end[table[state, b]]))
        else:
            # letters are many: signs are drawn as often as all of them together
            signs = [b for b in possible if chr(b) in '{}[]":, ']
            byte = rng.choice(signs if signs and rng.random() < 0.5 else possible)
        text.append(byte)
        state = int(table[state, byte])


def _cpu_s() -> float:
    """Of this process and those that it has started: the clock says more of other work here."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _reason(error: ConstraintError) -> str:
    """Refusals of one kind: without names and numbers."""
    why = error.why.split(" (")[0]
    return "".join("N" if c.isdigit() else c for c in why)[:90]


def _sum(tallies: list[Tally]) -> Tally:
    whole = Tally()
    for tally in tallies:
        for name in (
            "schemas",
            "built",
            "valid",
            "written",
            "invalid",
            "unsound",
            "drawn",
            "unchecked",
        ):
            setattr(whole, name, getattr(whole, name) + getattr(tally, name))
        whole.seconds += tally.seconds
        whole.states += tally.states
        whole.refusals += tally.refusals
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path, help="a draft's folder of the JSON Schema test suite")
    parser.add_argument("--bench", type=Path, help="a folder of folders of schemas")
    parser.add_argument("--every", type=int, default=1, help="take each n-th schema of the bench")
    parser.add_argument("--draws", type=int, default=20, help="texts drawn of each schema")
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    compiler.BUILD_S = 600  # its limit of CPU time alone: what it takes by the clock is not known
    builder = Builder()
    rows: list[Row] = []
    for kind, sets in (
        ("suite", suite(asked.suite, builder) if asked.suite else ()),
        ("bench", bench(asked.bench, asked.every, asked.draws, builder) if asked.bench else ()),
    ):
        tallies: list[Tally] = []
        for name, tally in sets:
            tallies.append(tally)
            rows.append({"kind": kind, **tally.row(name)})
            progress(str(rows[-1]))
        if tallies:
            rows.append({"kind": kind, **_sum(tallies).row("all")})
    columns = ["kind", "set", "schemas", "built", "share", "valid", "written", "invalid"]
    columns += ["drawn", "unsound", "p50_s", "p95_s", "max_s"]
    print(markdown(rows, columns))
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    write(asked.json, rows, every=asked.every, draws=asked.draws, build_process_mib=round(largest))


if __name__ == "__main__":
    main()
