"""A regex as an automaton over bytes, in a process of its own. Knows no tokens.

`python -m` this: the regex on standard input, arrays on standard output. A regex of a few
characters can ask for any amount of time and memory, so both are limited here by the system; who
starts the process limits the time on the clock.
"""

from __future__ import annotations

import io
import os
import resource
import sys

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.constraints.reach import leading_to

Bytes = npt.NDArray[np.int32]

CPU_S = 5
MEMORY_BYTES = 1 << 30
MAX_STATES = 4096
REFUSED, TOO_LARGE = 3, 4

# Begins and ends every match. Without the end the automaton prefers an alternative as a search does,
# and "a|ab" would not match "ab"; without the beginning it is also built for matches that begin
# anywhere, which of some numbers takes minutes. A NUL is therefore never part of an answer.
_NUL = "\\x00"


def main() -> int:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        table, accepting = compile_regex(sys.stdin.buffer.read().decode())
    except ValueError as error:
        sys.stdout.write(str(error))
        return REFUSED
    except OverflowError:
        return TOO_LARGE
    out = io.BytesIO()
    np.savez(out, table=table, accepting=accepting)
    sys.stdout.buffer.write(out.getvalue())
    return 0


def compile_regex(pattern: str) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """The least automaton of whole matches: [num_states, 256] next states, -1 where there is none,
    and which states accept. It begins in state 0; an empty one has no match.

    Raises ValueError, and OverflowError with more than MAX_STATES.
    """
    from outlines_core import Index, Vocabulary

    every_byte = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    if "NFA" in (alone := _complaint(pattern, every_byte)):
        raise ValueError(alone)  # it could still fit between our parentheses
    try:
        index = Index(f"{_NUL}(?:{pattern}){_NUL}", every_byte)
    except ValueError as error:
        if "Found no transitions" in str(error):
            return _empty()
        raise
    transitions, final = index.get_transitions(), index.get_final_states()
    numbers = {state: number for number, state in enumerate(transitions)}
    table = np.full((len(numbers), 256), -1, dtype=np.int32)
    accepting = np.zeros(len(numbers), dtype=np.bool_)
    for state, edges in transitions.items():
        for byte, following in edges.items():
            if byte == 0:
                accepting[numbers[state]] = following in final
            elif byte < 256:
                table[numbers[state], byte] = numbers.get(following, -1)
    begin = transitions[index.get_initial_state()].get(0)
    return _least(table, accepting, numbers[begin]) if begin in numbers else _empty()


def _complaint(pattern: str, every_byte: object) -> str:
    """What is said of the regex alone; nothing when it is well."""
    from outlines_core import Index

    try:
        Index(_NUL + pattern, every_byte)
    except ValueError as error:
        return str(error)
    return ""


def _empty() -> tuple[Bytes, npt.NDArray[np.bool_]]:
    return np.zeros((0, 256), dtype=np.int32), np.zeros(0, dtype=np.bool_)


def _least(
    table: Bytes, accepting: npt.NDArray[np.bool_], start: int
) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Without states that lead to no match or are like another; numbered from the start."""
    useful = leading_to(table, accepting)
    if not useful[start]:
        return _empty()
    table = np.where((table >= 0) & useful[table], table, -1)
    kinds = _kinds(table, np.where(useful, accepting.astype(np.int64), -1))
    # one state of each kind, numbered by the first bytes that lead there: the same in every process
    order = {int(kinds[start]): 0}
    chosen = [start]
    for state in chosen:  # which grows
        for target in table[state][table[state] >= 0].tolist():
            if int(kinds[target]) not in order:
                order[int(kinds[target])] = len(order)
                chosen.append(target)
    if len(order) > MAX_STATES:
        raise OverflowError
    numbers = np.full(len(kinds), -1, dtype=np.int32)
    numbers[list(order)] = np.arange(len(order))
    table = table[chosen]
    return np.where(table >= 0, numbers[kinds[table]], -1).astype(np.int32), accepting[chosen]


def _kinds(table: Bytes, kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[num_states] alike are states that no text tells apart, to begin with those of one kind.

    Each round tells states apart by the kinds that bytes lead to, compared by a random sum of them:
    that two sums are equal by accident is as likely as guessing 60 bits.
    """
    columns = np.unique(table, axis=1)
    random = np.random.default_rng()
    weights = random.integers(1, 1 << 63, columns.shape[1] + 1, dtype=np.uint64) | np.uint64(1)
    count = 0
    while True:
        names = random.integers(1, 1 << 63, int(kinds.max()) + 2, dtype=np.uint64)
        following = np.where(columns >= 0, names[kinds[columns]], np.uint64(0))
        sums = (following * weights[:-1]).sum(axis=1, dtype=np.uint64) + names[kinds] * weights[-1]
        kinds = np.unique(sums, return_inverse=True)[1].astype(np.int64)
        if (now := int(kinds.max()) + 1) == count:
            return kinds
        count = now


if __name__ == "__main__":
    sys.exit(main())
