"""Computes one step: sequences -> packed rows -> logits -> decoding -> commits.

Tensors stay on the device; one copy comes back per step.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.decoding.registry import RULES
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.decoding.stages import Guidance, Sampling, ban_, draw, guide_
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.engine.packing import Fill, PackedStep, RowCommits, pack
from vdiff_grpc.engine.rng import CounterNoise, Noise
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.types import ModelInfo


class Runner:
    """Owns the model. Used by one thread.

    banned_ids: never drawn: the mask, and ids that mean nothing.
    """

    def __init__(
        self,
        model: LoadedModel,
        info: ModelInfo,
        banned_ids: Rows[int],
        noise: Noise | None = None,
        fill: Fill | None = None,
    ) -> None:
        self.model = model
        self.fill = fill or Fill()
        self.noise: Noise = noise or CounterNoise()
        self._filler_id = info.mask_token_id
        self._banned_ids = self._to_device(np.array(sorted(banned_ids), dtype=np.int64))
        self._end_ids = self._to_device(np.array(info.end_token_ids, dtype=np.int64))

    @torch.inference_mode()
    def step(self, sequences: Rows[Sequence]) -> list[RowCommits]:
        """One denoising step of every sequence. Changes none of them."""
        packed = pack(sequences, self.model.shift, self._filler_id, self.fill)
        return self._decode(packed, self.forward(packed))

    @torch.inference_mode()
    def forward(self, packed: PackedStep) -> Tensor:
        """[num_head, vocab_size] float32 logits."""
        return self.model.logits(
            self._to_device(packed.token_ids),
            self._to_device(packed.position_ids),
            packed.layout,
            self._to_device(packed.head),
        )

    def _decode(self, packed: PackedStep, logits: Tensor) -> list[RowCommits]:
        count = packed.num_candidates
        if len(packed.guided):
            guide_(logits, self._guidance(packed))
            logits = logits[: max(count, self.fill.min_head)]
        normaliser = logits.logsumexp(dim=-1)
        without_end = self._to_device(packed.without_end())
        ban_(logits, self._banned_ids, self._end_ids, without_end)
        tokens = draw(logits, self._sampling(packed), self.noise)
        likelihood = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
        confidence = (likelihood - normaliser).exp_()
        candidates = Candidates(tokens[:count], confidence[:count], self._order(packed))
        chosen = self._select(packed, candidates)
        # tokens are below 2^31 and float32 has the width of int32: one copy for all
        columns = torch.stack(
            [
                chosen.int(),
                candidates.token_ids.int(),
                candidates.confidence.view(torch.int32),
            ]
        )
        return _split(packed, columns.cpu().numpy())

    def _select(self, packed: PackedStep, candidates: Candidates) -> Tensor:
        """Each rule over all rows that use it."""
        sequences = packed.sequences
        kinds = [type(s.params.strategy) for s in sequences]
        used = dict.fromkeys(kinds)
        if len(used) == 1:
            rule = RULES[kinds[0]]
            group = self._group(packed.rows, rule.parameters(sequences))
            return rule.select(group, candidates)
        chosen = torch.zeros_like(candidates.token_ids, dtype=torch.bool)
        for kind in used:
            rows = [row for row, other in enumerate(kinds) if other is kind]
            number = np.full(len(sequences), -1, dtype=np.int64)
            number[rows] = np.arange(len(rows))
            segments = number[packed.rows]
            mine = self._to_device(np.flatnonzero(segments >= 0))
            rule = RULES[kind]
            group = self._group(
                segments[segments >= 0], rule.parameters([sequences[row] for row in rows])
            )
            part = Candidates(
                candidates.token_ids[mine], candidates.confidence[mine], candidates.order[mine]
            )
            chosen[mine] = rule.select(group, part)
        return chosen

    def _group(self, segments: np.ndarray, parameters: list[list[float]]) -> Group:
        return Group(
            self._to_device(segments), self._to_device(np.array(parameters, dtype=np.float32))
        )

    def _guidance(self, packed: PackedStep) -> Guidance:
        scales = packed.of_candidates([s.params.cfg_scale for s in packed.sequences])
        first = packed.num_candidates
        blind = np.arange(first, first + len(packed.guided))
        return Guidance(
            self._to_device(packed.guided),
            self._to_device(blind),
            self._to_device(scales[packed.guided].astype(np.float32)),
        )

    def _sampling(self, packed: PackedStep) -> Sampling | None:
        params = [s.params for s in packed.sequences]
        temperature = packed.of_candidates([p.temperature for p in params])
        drawn = np.flatnonzero(temperature > 0)
        if not len(drawn):
            return None
        top_k = packed.of_candidates([p.top_k for p in params])[drawn]
        top_p = packed.of_candidates([p.top_p for p in params])[drawn]
        return Sampling(
            rows=self._to_device(drawn),
            temperature=self._to_device(temperature[drawn].astype(np.float32)),
            top_k=self._to_device(top_k.astype(np.int64)),
            top_p=self._to_device(top_p.astype(np.float32)),
            noise=packed.noise_rows(drawn),
            filtered=bool((top_k > 0).any() or (top_p < 1).any()),
        )

    def _order(self, packed: PackedStep) -> Tensor:
        count = packed.num_candidates
        if not any(RULES[type(s.params.strategy)].draws_order(s) for s in packed.sequences):
            return torch.zeros(count, device=self.model.device)
        return self._to_device(self.noise.order_uniforms(packed.noise_rows(np.arange(count))))

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.model.device, non_blocking=True)


def _split(packed: PackedStep, columns: np.ndarray) -> list[RowCommits]:
    """columns: [3, num_candidates] int32: chosen, token id, confidence's bits."""
    chosen = columns[0].astype(np.bool_)
    confidences = columns[2].view(np.float32)
    bounds = np.searchsorted(packed.rows, np.arange(len(packed.sequences) + 1))
    commits = []
    for row, sequence in enumerate(packed.sequences):
        mine = slice(bounds[row], bounds[row + 1])
        keep = chosen[mine]
        commits.append(
            RowCommits(
                sequence,
                packed.positions[mine][keep],
                columns[1][mine][keep].astype(np.int64),
                confidences[mine][keep],
            )
        )
    return commits
