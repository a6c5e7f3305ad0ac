"""The small autoregressive model beside the diffusion model: what it thinks of proposals.

Source: arXiv:2506.00413 (APD). Its keys and values of settled tokens are kept per row.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff_grpc.engine.attention import CAUSAL
from vdiff_grpc.engine.caches.policy import Kept
from vdiff_grpc.engine.columns import Ints, Variant
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.engine.packing import Fill, pack_variants
from vdiff_grpc.engine.sequence import AUXILIARY, Sequence


class Auxiliary:
    """Owns the auxiliary model: a causal one of the diffusion model's vocabulary.

    max_tokens: of one pass of it; a row's first look is at its whole prompt.
    """

    def __init__(self, model: LoadedModel, fill: Fill, max_tokens: int) -> None:
        self.model = model
        self.fill = fill
        self.max_tokens = max_tokens

    def log_probabilities(
        self, rows: Rows[Sequence], segments: Ints, positions: Ints, tokens: Tensor, width: int
    ) -> Tensor:
        """[num_proposals, width]: of every id at each position, given all that stands before it.

        segments, positions: [num_proposals] row, and canvas position, ascending; what stands
        between a row's proposals is given. tokens: what is proposed there. Ids that the model
        does not know (a vocabulary may lack added tokens) stand as id 0 before it.
        """
        scores = []
        begin = 0
        for group in self._passes(rows, segments, positions):
            end = begin + int(np.isin(segments, group).sum())
            mine = slice(begin, end)
            scores.append(
                self._pass(
                    [rows[number] for number in group],
                    segments[mine] - group[0],
                    positions[mine],
                    tokens[mine],
                )
            )
            begin = end
        found = scores[0] if len(scores) == 1 else torch.cat(scores)
        missing = max(width - found.shape[1], 0)
        return F.pad(found, (0, missing), value=-torch.inf)[:, :width]

    def _passes(self, rows: Rows[Sequence], segments: Ints, positions: Ints) -> list[list[int]]:
        """Numbers of the rows that are computed together: neighbours, as many as fit a pass."""
        groups: list[list[int]] = []
        left = 0
        for number, row in enumerate(rows):
            wanted = int(positions[segments == number][-1]) - row.leases[AUXILIARY].length
            if not groups or wanted > left:
                groups.append([])
                left = self.max_tokens
            groups[-1].append(number)
            left -= wanted
        return groups

    def _pass(
        self, rows: Rows[Sequence], segments: Ints, positions: Ints, tokens: Tensor
    ) -> Tensor:
        """[num_proposals, vocab_width], of some rows."""
        variants = []
        holes: list[Ints] = []
        begin, known = 0, self.model.vocab_width
        for number, row in enumerate(rows):
            mine = positions[segments == number]
            lease = row.leases[AUXILIARY]
            first = lease.length
            given = row.ids[first : mine[-1]]
            holes.append(begin + mine[:-1] - first)
            unknown = np.isin(np.arange(first, mine[-1]), mine) | (given >= known)
            variants.append(
                Variant(
                    np.where(unknown, 0, given),
                    row.position_ids[first : mine[-1]],
                    CAUSAL,
                    heads=mine - 1 - first,
                    positions=mine,
                    noise_step=0,
                    kept=Kept(lease, ((0, first),), first, int(mine[0]) - 1 - first),
                )
            )
            begin += len(given)
        packed = pack_variants(variants, 0, self.fill)
        device = self.model.device
        ids = torch.from_numpy(packed.token_ids).to(device)
        is_last = np.append(segments[1:] != segments[:-1], True)
        inner = torch.from_numpy(np.flatnonzero(~is_last)).to(device)
        ids[torch.from_numpy(np.concatenate(holes)).to(device)] = torch.where(
            tokens[inner] < known, tokens[inner], 0
        )
        logits = self.model.logits(
            ids,
            torch.from_numpy(packed.position_ids).to(device),
            packed.layout,
            torch.from_numpy(packed.head).to(device),
        )
        for variant in variants:
            assert variant.kept is not None
            variant.kept.done()
        return F.log_softmax(logits[: len(positions)], dim=-1)
