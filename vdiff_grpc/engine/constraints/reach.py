"""From which states of a table others are reached. Knows nothing of bytes or tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def leading_to(table: npt.NDArray[np.int32], goals: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[num_states] the goals, and states from which one of them is reached.

    table: [num_states, n] next states, -1 where there is none.
    """
    is_edge = table >= 0
    targets = table[is_edge]
    order = np.argsort(targets, kind="stable")
    sources = np.nonzero(is_edge)[0][order]
    bounds = np.searchsorted(targets[order], np.arange(len(table) + 1)).tolist()
    found = goals.copy()
    newest = np.flatnonzero(goals)
    while len(newest):
        before = np.concatenate([sources[bounds[t] : bounds[t + 1]] for t in newest.tolist()])
        newest = np.unique(before[~found[before]])
        found[newest] = True
    return found
