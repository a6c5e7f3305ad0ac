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

Bytes = npt.NDArray[np.int32]

CPU_S = 5
MEMORY_BYTES = 1 << 30
MAX_STATES = 4096
REFUSED, TOO_LARGE = 3, 4

# Ends every match. Without it the automaton prefers an alternative as a search does, and "a|ab"
# would not match "ab". A NUL is therefore never part of an answer.
_END = "\\x00"


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
        index = Index(f"(?:{pattern}){_END}", every_byte)
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
    return _least(table, accepting, numbers[index.get_initial_state()])


def _complaint(pattern: str, every_byte: object) -> str:
    """What is said of the regex alone; nothing when it is well."""
    from outlines_core import Index

    try:
        Index(pattern, every_byte)
    except ValueError as error:
        return str(error)
    return ""


def _empty() -> tuple[Bytes, npt.NDArray[np.bool_]]:
    return np.zeros((0, 256), dtype=np.int32), np.zeros(0, dtype=np.bool_)


def _least(
    table: Bytes, accepting: npt.NDArray[np.bool_], start: int
) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Without states that lead to no match or are like another; numbered from the start."""
    useful = accepting.copy()
    while True:
        leads = useful | (useful[table] & (table >= 0)).any(axis=1)
        if (leads == useful).all():
            break
        useful = leads
    if not useful[start]:
        return _empty()
    table = np.where((table >= 0) & useful[table], table, -1)
    kinds = np.where(useful, accepting.astype(np.int32), -1)
    count = 0
    while True:  # states are alike until an edge tells them apart
        following = np.where(table >= 0, kinds[table], -1)
        signature = np.ascontiguousarray(np.column_stack([kinds, following]))
        rows = signature.view(np.dtype((np.void, signature.dtype.itemsize * 257))).ravel()
        kinds = np.where(useful, np.unique(rows, return_inverse=True)[1], -1).astype(np.int32)
        if (now := len(np.unique(kinds))) == count:
            break
        count = now
    order: dict[int, int] = {}
    queue = [start]
    for state in queue:  # which grows
        if int(kinds[state]) in order:
            continue
        order[int(kinds[state])] = state
        queue += np.unique(table[state][table[state] >= 0]).tolist()
    if len(order) > MAX_STATES:
        raise OverflowError
    numbers = np.full(int(kinds.max()) + 2, -1, dtype=np.int32)
    numbers[list(order)] = np.arange(len(order))
    chosen = np.array(list(order.values()))
    table = table[chosen]
    return np.where(table >= 0, numbers[kinds[table]], -1).astype(np.int32), accepting[chosen]


if __name__ == "__main__":
    sys.exit(main())
