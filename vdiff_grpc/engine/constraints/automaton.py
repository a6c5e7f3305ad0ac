"""An automaton over tokens: which token leads from which state to which. Knows no canvas.

A vocabulary has a hundred thousand tokens, but few ways for a token to matter: tokens that lead
from each state to the same state are one class.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.constraints.kinds import ConstraintError
from vdiff_grpc.engine.constraints.reach import leading_to

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_EDGES = 1 << 26  # of single tokens; half a second
MAX_CELLS = 1 << 23  # states times classes: 32 MB


class Vocabulary:
    """The bytes of the tokens that text is made of, as a tree of their beginnings.

    end_ids: tokens that end an answer. size: of the model's vocabulary.
    """

    def __init__(self, tokens: Mapping[int, bytes], end_ids: tuple[int, ...], size: int) -> None:
        self.size = size
        self.end_ids = np.array(sorted(end_ids), dtype=np.int64)
        nodes: dict[bytes, int] = {b"": 0}
        children: list[list[tuple[int, int]]] = [[]]
        here: list[list[int]] = [[]]
        for token, data in tokens.items():
            if not data or token in end_ids:
                continue
            node = 0
            for length in range(1, len(data) + 1):
                beginning = data[:length]
                following = nodes.get(beginning)
                if following is None:
                    following = nodes[beginning] = len(here)
                    children[node].append((data[length - 1], following))
                    children.append([])
                    here.append([])
                node = following
            here[node].append(token)
        self._child_counts = np.array([len(c) for c in children], dtype=np.int64)
        self._child_starts = np.cumsum(self._child_counts) - self._child_counts
        flat = [pair for c in children for pair in c]
        self._child_bytes, self._children = np.array(flat, dtype=np.int64).reshape(-1, 2).T
        self._token_counts = np.array([len(t) for t in here], dtype=np.int64)
        self._token_starts = np.cumsum(self._token_counts) - self._token_counts
        self._tokens = np.array([token for t in here for token in t], dtype=np.int64)

    def edges(self, table: Ints, state: int) -> tuple[Longs, Longs]:
        """The tokens that lead somewhere from a state of an automaton over bytes, and where to."""
        nodes, states = np.zeros(1, dtype=np.int64), np.full(1, state, dtype=np.int64)
        tokens: list[Longs] = []
        ends: list[Longs] = []
        while len(nodes):
            line, child = _spread(self._child_starts[nodes], self._child_counts[nodes])
            states = table[states[line], self._child_bytes[child]].astype(np.int64)
            alive = states >= 0
            nodes, states = self._children[child[alive]], states[alive]
            line, place = _spread(self._token_starts[nodes], self._token_counts[nodes])
            tokens.append(self._tokens[place])
            ends.append(states[line])
        return np.concatenate(tokens), np.concatenate(ends)


@dataclass(frozen=True, slots=True, eq=False)
class TokenAutomaton:
    """Begins in state 0; the last state is that after the answer's end, where only end tokens lead.

    classes: [vocab_size] of each token; 0: leads nowhere. table: [num_states, num_classes] the next
    state, or -1. accepting: [num_states] whether the answer may be over there.
    sources, targets, sets: [num_pairs] from which state to which, by any class of which set;
    sorted by target. members, member_starts: the sets' classes, one set after the other.
    digest: of all of it.
    """

    classes: Ints
    table: Ints
    accepting: Bools
    sources: Ints
    targets: Ints
    sets: Ints
    members: Ints
    member_starts: Ints
    digest: bytes

    @property
    def num_states(self) -> int:
        return len(self.table)

    @property
    def num_bytes(self) -> int:
        arrays = (self.classes, self.table, self.sources, self.targets, self.sets, self.members)
        return sum(array.nbytes for array in arrays)

    def set_classes(self, number: int) -> Ints:
        """The classes of a set, ascending."""
        bounds = np.append(self.member_starts, len(self.members))
        return self.members[bounds[number] : bounds[number + 1]]

    def fits(self, length: int, *, exact: bool) -> Bools:
        """[length + 1, num_states] from which states so many tokens can be an answer's rest.

        exact: all of them text, without an end token.
        """
        ends = self.accepting.copy()
        ends[-1] = not exact
        found = np.zeros((length + 1, self.num_states), dtype=np.bool_)
        found[0] = ends
        for left in range(length):
            found[left + 1] = self.before(found[left])
            if left and (found[left + 1] == found[left]).all():
                found[left + 2 :] = found[left]
                break
        return found

    def before(self, states: Bools) -> Bools:
        """[num_states] from which one token leads to one of these states."""
        found = np.zeros(self.num_states, dtype=np.bool_)
        found[self.sources[states[self.targets]]] = True
        return found

    def shortest(self) -> int:
        """The fewest tokens of an answer."""
        states, count = self.accepting.copy(), 0
        while not states[0]:
            states |= self.before(states)
            count += 1
        return count


@dataclass(frozen=True, slots=True, eq=False)
class HoleConstraint:
    """What one hole of a request must be.

    hole: its number. fits: [length of the hole + 1, num_states] from which states so many tokens
    are an answer's rest; at the hole's length from the first one. ending: what a text that fills
    the hole ends with if it is whole, and not cut off.
    """

    hole: int
    automaton: TokenAutomaton
    fits: Bools
    ending: str = ""


def token_automaton(table: Ints, accepting: Bools, vocabulary: Vocabulary) -> TokenAutomaton:
    """Raises ConstraintError when it is too large, or these tokens cannot write any answer.

    table, accepting: of an automaton over bytes (regex_process.compile_regex).
    """
    over = len(table)
    if not over:
        raise ConstraintError("", "no text satisfies it")
    # Each token's sum over its edges tells its class. Salted: nobody can choose equal sums.
    sums = np.zeros(vocabulary.size, dtype=np.uint64)
    salt = np.uint64(secrets.randbits(64))
    num_edges = 0
    for state in range(over):
        tokens, ends = vocabulary.edges(table, state)
        num_edges += len(tokens)
        if num_edges > MAX_EDGES:
            raise ConstraintError("", f"it has more than {MAX_EDGES} transitions with this model")
        sums[tokens] += _mixed((ends + state * (over + 1) + 1).astype(np.uint64) ^ salt)
    sums[vocabulary.end_ids] = _mixed(np.array([salt]))[0]
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    # numbered by their first tokens, those that lead nowhere first
    order = np.lexsort((first, sums[first] != 0))
    numbers = np.empty(len(order), dtype=np.int32)
    shift = 0 if sums[first[order[0]]] == 0 else 1
    numbers[order] = np.arange(len(order), dtype=np.int32) + shift
    classes = numbers[inverse].astype(np.int32)
    num_classes = len(order) + shift
    if (over + 1) * num_classes > MAX_CELLS:
        raise ConstraintError("", f"it has more than {MAX_CELLS} transitions of kinds of tokens")
    whole = np.full((over + 1, num_classes), -1, dtype=np.int32)
    representative = np.full(vocabulary.size, -1, dtype=np.int32)
    firsts = first[order]
    representative[firsts] = classes[firsts]
    for state in range(over):
        tokens, ends = vocabulary.edges(table, state)
        chosen = representative[tokens]
        whole[state, chosen[chosen >= 0]] = ends[chosen >= 0]
    if len(vocabulary.end_ids):
        end = classes[vocabulary.end_ids[0]]
        whole[:, end] = -1
        whole[np.append(accepting, True), end] = over
    return _pruned(classes, whole, np.append(accepting, False))


def _pruned(classes: Ints, table: Ints, accepting: Bools) -> TokenAutomaton:
    """Without edges to states from which these tokens cannot finish, or that none lead to."""
    goals = accepting.copy()
    goals[-1] = True
    useful = leading_to(table, goals)
    if not useful[0]:
        raise ConstraintError("", "the model's tokens cannot write any text that satisfies it")
    table = np.where((table >= 0) & useful[table], table, -1).astype(np.int32)
    pairs: dict[tuple[int, int], int] = {}
    sets: dict[bytes, int] = {}
    members: list[Ints] = []
    for state, row in enumerate(table):
        live = np.flatnonzero(row >= 0)
        targets = row[live]
        for target in np.unique(targets).tolist():
            group = live[targets == target].astype(np.int32)
            number = sets.setdefault(group.tobytes(), len(sets))
            if number == len(members):
                members.append(group)
            pairs[target, state] = number
    columns = np.array([(*key, pairs[key]) for key in sorted(pairs)], dtype=np.int32)
    targets, sources, numbers = columns.reshape(-1, 3).T
    lengths = np.array([len(group) for group in members], dtype=np.int32)
    arrays = (
        classes,
        table,
        accepting,
        np.ascontiguousarray(sources),
        np.ascontiguousarray(targets),
        np.ascontiguousarray(numbers),
        np.concatenate(members) if members else np.zeros(0, dtype=np.int32),
        (np.cumsum(lengths) - lengths).astype(np.int32),
    )
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.tobytes())
    return TokenAutomaton(*arrays, digest.digest())


def _spread(starts: Longs, counts: Longs) -> tuple[Longs, Longs]:
    """Of each line its places start, start + 1, ...: the lines, and the places."""
    lines = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return lines, starts[lines] + np.arange(len(lines)) - before[lines]


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64: numbers without a pattern."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
