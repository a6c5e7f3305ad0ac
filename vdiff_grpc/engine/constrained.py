"""Draws the tokens of constrained rows: each on the best path that its automaton leaves open.

A stage like the draw itself; the rules then choose among positions as ever. What a row is given
depends on that row alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vdiff_grpc.engine.columns import Bools, Ints, Status
from vdiff_grpc.engine.constraints.automaton import HoleConstraint, TokenAutomaton
from vdiff_grpc.engine.decoding.best_path import best_path
from vdiff_grpc.engine.packing import PackedStep
from vdiff_grpc.engine.sequence import Sequence, State

CACHE_BYTES = 256 << 20

_LEAST = -1e6  # stands for minus infinity, of which no sum is better than another


class Constrainer:
    """Keeps what it needs of the last used automata on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: OrderedDict[bytes, Classes] = OrderedDict()
        self._num_bytes = 0

    def draw_(
        self, packed: PackedStep, scores: Callable[[Ints], Tensor], tokens: Tensor
    ) -> Tensor | None:
        """In place of the tokens drawn, those of the best paths, where a row is constrained.

        Returns [num_candidates] where nothing else may stand, and what is filled stays; None:
        nowhere.

        scores: [n, vocab_size] float32 of some candidates of one row, the best of which a draw
        would take. tokens: [num_candidates or more] drawn.
        """
        bounds = packed.bounds().tolist()
        forced = np.zeros(packed.num_candidates, dtype=np.bool_)
        for number, row in enumerate(packed.sequences):
            mine = np.arange(bounds[number], bounds[number + 1])
            if row.search is not None:
                self._draw_candidates_(packed, row, mine, scores, tokens)
                continue
            for constraint in row.request.constraints:
                begin, end = _of_block(row, constraint)
                if begin >= end:
                    continue
                positions = row.generated[begin:end]
                lines = mine[
                    (packed.status[mine] == Status.MASKED)
                    & (packed.positions[mine] >= positions[0])
                    & (packed.positions[mine] <= positions[-1])
                ]
                if not len(lines):
                    continue
                seen = np.searchsorted(positions, packed.positions[lines])
                drawn, alone = self._path(row, constraint, begin, end, scores(lines), seen)
                tokens[torch.from_numpy(lines).to(tokens.device)] = drawn
                if not row.params.strategy.REVOCABLE:
                    forced[lines] = alone
        return torch.from_numpy(forced).to(tokens.device) if forced.any() else None

    def _draw_candidates_(
        self,
        packed: PackedStep,
        row: Sequence,
        mine: Ints,
        scores: Callable[[Ints], Tensor],
        tokens: Tensor,
    ) -> None:
        """The same of a hole whose length is being chosen: each candidate is all of it, masked."""
        assert row.search is not None
        for constraint in row.request.constraints:
            if constraint.hole != row.search.hole:
                continue
            automaton, ends = constraint.automaton, constraint.fits[0]
            classes = self._classes(automaton)
            for candidate in np.unique(packed.numbers[mine]):
                lines = mine[packed.numbers[mine] == candidate]
                found, fixed = scores(lines), np.full(len(lines), -1, dtype=np.int32)
                path, _ = best_path(automaton, 0, ends, fixed, classes.best(found))
                drawn = classes.tokens(found, path)
                tokens[torch.from_numpy(lines).to(tokens.device)] = drawn

    def _path(
        self,
        row: Sequence,
        constraint: HoleConstraint,
        begin: int,
        end: int,
        scores: Tensor,
        seen: Ints,
    ) -> tuple[Tensor, Bools]:
        """[n] the tokens of the best path at those generated positions that were looked at, and
        whether nothing else may stand there.

        begin, end: of the generated positions of the block that are the constraint's. seen: [n]
        which of them the scores are of; other masks are open, too, but nothing is known of them.
        """
        automaton = constraint.automaton
        hole_begin, hole_end = _hole(row, constraint)
        classes = self._classes(automaton)
        state = 0
        for kind in automaton.classes[row.ids[row.generated[hole_begin:begin]]].tolist():
            state = int(automaton.table[state, kind])
        fixed = np.full(end - begin, -1, dtype=np.int32)
        filled = row.state[row.generated[begin:end]] == State.COMMITTED
        fixed[filled] = automaton.classes[row.ids[row.generated[begin:end]][filled]]
        by_class = np.zeros((end - begin, automaton.table.shape[1]), dtype=np.float32)
        by_class[seen] = classes.best(scores)
        ends = constraint.fits[hole_end - end]
        path, forced = best_path(automaton, state, ends, fixed, by_class)
        chosen = path[seen]
        return classes.tokens(scores, chosen), forced[seen] & (classes.sizes[chosen] == 1)

    def _classes(self, automaton: TokenAutomaton) -> Classes:
        found = self._kept.get(automaton.digest)
        if found is None:
            found = Classes(automaton, self._device)
            self._kept[automaton.digest] = found
            self._num_bytes += found.num_bytes
            while self._num_bytes > CACHE_BYTES and len(self._kept) > 1:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        self._kept.move_to_end(automaton.digest)
        return found


def _hole(row: Sequence, constraint: HoleConstraint) -> tuple[int, int]:
    """Where among the generated positions the constraint's hole begins and ends."""
    ends = row.text.hole_ends
    return (ends[constraint.hole - 1] if constraint.hole else 0), ends[constraint.hole]


def _of_block(row: Sequence, constraint: HoleConstraint) -> tuple[int, int]:
    """The same of that part of it which lies in the active block."""
    begin, end = _hole(row, constraint)
    block = row.blocks[row.block]
    return max(begin, block.start), min(end, block.stop)


class Classes:
    """The tokens of each class, on the device of the scores. sizes: how many they are."""

    def __init__(self, automaton: TokenAutomaton, device: torch.device) -> None:
        self._count = automaton.table.shape[1]
        kinds = automaton.classes
        order = np.argsort(kinds, kind="stable")
        self._order = order[np.searchsorted(kinds[order], 1) :]  # class 0 leads nowhere
        self.sizes = np.bincount(kinds, minlength=self._count)
        self._bounds = np.append(0, np.cumsum(self.sizes[1:]))
        self._kinds = None
        if device.type != "cpu":
            self._kinds = torch.from_numpy(kinds.astype(np.int64)).to(device)
        self.num_bytes = self._order.nbytes + kinds.nbytes

    def best(self, scores: Tensor) -> npt.NDArray[np.float32]:
        """[n, num_classes] the highest score of each class, on the host."""
        found = np.full((len(scores), self._count), _LEAST, dtype=np.float32)
        if self._kinds is None:
            taken = scores.numpy().take(self._order, axis=1)  # [:, order] takes five times as long
            found[:, 1:] = np.maximum.reduceat(taken, self._bounds[:-1], axis=1)
        else:
            kinds = self._kinds.expand(len(scores), -1)
            highest = scores.new_full((len(scores), self._count), _LEAST)
            scores = scores[:, : kinds.shape[1]]
            found = highest.scatter_reduce_(1, kinds, scores, "amax").cpu().numpy()
        return np.fmax(found, np.float32(_LEAST))

    def tokens(self, scores: Tensor, chosen: npt.NDArray[np.int32]) -> Tensor:
        """[n] the best token of the class that each row has chosen; ties go to the lower id."""
        if self._kinds is None:
            table, found = scores.numpy(), np.empty(len(chosen), dtype=np.int64)
            for line, kind in enumerate(chosen.tolist()):
                members = self._order[self._bounds[kind - 1] : self._bounds[kind]]
                found[line] = members[table[line].take(members).argmax()]
            return torch.from_numpy(found)
        others = self._kinds != torch.from_numpy(chosen).to(scores.device).unsqueeze(1)
        scores = scores[:, : others.shape[1]].nan_to_num(_LEAST, neginf=_LEAST)
        return scores.masked_fill(others, -torch.inf).argmax(dim=-1)
