"""The best way through an automaton that what stands on the canvas leaves open.

Positions are decided in any order, and each alone may be allowed while together they are not. So the
best whole path is searched (Viterbi), and what is filled lies on it: after every step what stands
there is a part of a valid answer, whichever positions a rule has chosen.
Source: DINGO, arXiv:2505.23061. Knows no rows and no tensors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.constraints.automaton import Bools, Ints, TokenAutomaton

Doubles = npt.NDArray[np.float64]


def best_path(
    automaton: TokenAutomaton,
    start: int,
    ends: Bools,
    fixed: Ints,
    scores: npt.NDArray[np.float32],
) -> tuple[Ints, Bools]:
    """[length] the class of each position's token on the best path; ties go to lower numbers.

    And whether every path has that class there.

    ends: [num_states] where the path may end. fixed: [length] the class of the token that stands
    there, or -1. scores: [length, num_classes] of the best token of each class; finite.
    """
    length, num_states = len(fixed), automaton.num_states
    by_set = np.maximum.reduceat(scores[:, automaton.members], automaton.member_starts, axis=1)
    bounds = np.flatnonzero(np.diff(automaton.targets, prepend=-1))
    reached = automaton.targets[bounds]
    sizes = np.diff(bounds, append=len(automaton.targets))
    best = np.full(num_states, -np.inf)
    best[start] = 0.0
    came: list[Ints] = []  # the pair by which each state is reached best
    before: list[Bools] = []  # the states that are reached
    for position in range(length):
        before.append(best > -np.inf)
        pairs = np.full(num_states, -1, dtype=np.int32)
        following = np.full(num_states, -np.inf)
        if fixed[position] >= 0:
            for state in np.flatnonzero(best > -np.inf).tolist():
                target = int(automaton.table[state, fixed[position]])
                if target >= 0 and best[state] > following[target]:
                    following[target], pairs[target] = best[state], state
        else:
            reaching = best[automaton.sources] + by_set[position, automaton.sets]
            highest = np.maximum.reduceat(reaching, bounds)
            first = np.where(
                reaching == np.repeat(highest, sizes), np.arange(len(reaching)), 1 << 30
            )
            following[reached] = highest
            pairs[reached] = np.minimum.reduceat(first, bounds)
        best = following
        came.append(pairs)
    state = int(np.where(ends, best, -np.inf).argmax())
    assert ends[state], "what stands on the canvas is part of an answer"
    assert best[state] > -np.inf, "what stands on the canvas is part of an answer"
    classes = np.array(fixed, dtype=np.int32)
    for position in reversed(range(length)):
        pair = int(came[position][state])
        if fixed[position] >= 0:
            state = pair
            continue
        members = automaton.set_classes(int(automaton.sets[pair]))
        classes[position] = members[scores[position, members].argmax()]
        state = int(automaton.sources[pair])
    return classes, _forced(automaton, before, ends, fixed)


def _forced(automaton: TokenAutomaton, before: list[Bools], ends: Bools, fixed: Ints) -> Bools:
    """[length] where all paths have tokens of one class only.

    before: of each position the states that are reached there.
    """
    found = fixed >= 0
    first = automaton.members[automaton.member_starts]
    last = automaton.members[np.append(automaton.member_starts[1:], len(automaton.members)) - 1]
    states = ends
    for position in reversed(range(len(fixed))):
        if fixed[position] >= 0:
            targets = automaton.table[:, fixed[position]]
            states = before[position] & (targets >= 0) & states[targets]
            continue
        open_ = before[position][automaton.sources] & states[automaton.targets]
        sets = automaton.sets[open_]
        found[position] = first[sets].min() == last[sets].max()
        states = np.zeros(automaton.num_states, dtype=np.bool_)
        states[automaton.sources[open_]] = True
    return found
