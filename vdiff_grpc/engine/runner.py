"""Computes one step: sequences -> packed rows -> logits -> decoding -> changes.

Tensors stay on the device; one copy comes back per step.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from vdiff_grpc.engine.auxiliary import Auxiliary
from vdiff_grpc.engine.columns import NO_HASTE, Action, Columns, Ints, Variant
from vdiff_grpc.engine.constrained import Constrainer
from vdiff_grpc.engine.decoding.hurry import hasten
from vdiff_grpc.engine.decoding.registry import ORDER, rule_of
from vdiff_grpc.engine.decoding.rule import Candidates, Group
from vdiff_grpc.engine.decoding.stages import (
    Guidance,
    Sampling,
    ban_,
    draw,
    guide_,
    normaliser,
    normaliser_and_entropy,
    perturbed,
)
from vdiff_grpc.engine.growing import GrowingSequence, bans
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.engine.models.row_model import RowModel
from vdiff_grpc.engine.packing import Fill, PackedStep, pack
from vdiff_grpc.engine.rng import CounterNoise, Noise, NoiseRows
from vdiff_grpc.engine.sequence import Sequence, State
from vdiff_grpc.engine.types import MAX_TOP_LOGPROBS, ModelInfo


@dataclass(frozen=True, slots=True)
class RowStep:
    """What one forward pass gives a row: the changes of its logical steps, in order.

    forwards: passes over its canvas. computed: tokens of these passes. error: what went wrong with
    this row alone. num_hurried: positions that were filled for the sake of time.
    """

    sequence: Sequence
    steps: list[Columns]
    forwards: int
    computed: int = 0
    error: Exception | None = None
    num_hurried: int = 0


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
        auxiliary: Auxiliary | None = None,
    ) -> None:
        self.model = model
        self.fill = fill or Fill()
        self.noise: Noise = noise or CounterNoise()
        self.auxiliary = auxiliary
        self.constrainer = Constrainer(model.device)
        self._filler_id = info.mask_token_id or 0
        self._vocab_size = info.vocab_size
        self._banned_ids = self._to_device(np.array(sorted(banned_ids), dtype=np.int64))
        growth = info.growth
        ends = [i for i in info.end_token_ids if growth is None or i != growth.delete]
        self._end_ids = self._to_device(np.array(ends, dtype=np.int64))
        self._info = info
        self._growth_ids = [
            self._to_device(np.array([i], dtype=np.int64))
            for i in ((growth.expand, growth.delete) if growth else ())
        ]

    @torch.inference_mode()
    def step(self, sequences: Rows[Sequence]) -> list[RowStep]:
        """One forward pass of every sequence, and what it changes. Applies nothing.

        Rows that share a rule stand together, so that each rule sees a slice.
        """
        rows: list[Sequence] = []
        plans: list[tuple[Variant, ...]] = []
        failed: list[RowStep] = []
        pages: list[Variant] = []
        reading: list[RowStep] = []
        for row in sorted(sequences, key=lambda row: ORDER[rule_of(row)]):
            if row.num_pages_now:
                pages += row.pages_variants(row.num_pages_now)
                computed = row.num_pages_now * row.page_tokens * row.num_streams
                # a prompt counts once, in however many steps it is read
                is_read = row.num_pages_now == row.num_pages_ahead
                reading.append(RowStep(row, [], row.num_streams * is_read, computed))
                continue
            try:
                plans.append(self._plan(row))
                rows.append(row)
            except Exception as error:
                failed.append(RowStep(row, [], 0, error=error))
        if not rows and not pages:
            return failed
        packed = pack(rows, plans, self._filler_id, self.fill, pages)
        logits = self.forward(packed)
        for variant in packed.variants:
            if variant.kept is not None:
                variant.kept.done()
        decided = self._decode(packed, logits) if rows else []
        return failed + reading + decided

    def _plan(self, row: Sequence) -> tuple[Variant, ...]:
        rule = rule_of(row)
        plan = rule.plan(row)
        if isinstance(row, GrowingSequence):
            return tuple(map(row.compacted, plan))
        return tuple(self._with_noise(row, v) for v in plan) if rule.noisy_canvas else plan

    def _with_noise(self, row: Sequence, variant: Variant) -> Variant:
        """Uniform random tokens where nothing is yet."""
        masked = row.state[variant.position_ids] == State.MASKED
        positions = variant.position_ids[masked]
        count = len(positions)
        address = NoiseRows(
            np.full(count, row.seed, dtype=np.uint64),
            np.full(count, variant.noise_step, dtype=np.int64),
            positions,
        )
        ids = variant.token_ids.copy()
        ids[masked] = self.noise.canvas_tokens(address, self._vocab_size)
        return variant.replaced(ids, variant.kept)

    @torch.inference_mode()
    def forward(self, packed: PackedStep) -> Tensor:
        """[num_head, vocab_size] float32 logits."""
        if isinstance(self.model, RowModel):
            return self.model.row_logits(packed.variants)
        tokens = packed.tokens
        token_ids, position_ids, head = self._columns_to_device(
            tokens.token_ids, tokens.position_ids, tokens.head
        )
        return self.model.logits(token_ids, position_ids, tokens.layout, head)

    def _decode(self, packed: PackedStep, logits: Tensor) -> list[RowStep]:
        if len(packed.guided):
            guide_(logits, self._guidance(packed))
            logits = logits[: self.fill.head(packed.num_candidates)]
        candidates, lines = self._candidates(packed, logits)
        actions = torch.zeros_like(candidates.token_ids)
        for rule, members in groupby(
            range(len(packed.sequences)), lambda row: rule_of(packed.sequences[row])
        ):
            rows = list(members)
            begin, end = np.searchsorted(packed.rows, [rows[0], rows[-1] + 1]).tolist()
            part = candidates.part(begin, end)
            if rule.scores_proposals:
                part = self._score(packed, part, begin, end)
            sequences = packed.sequences[rows[0] : rows[-1] + 1]
            parameters = np.array(rule.parameters(sequences), dtype=np.float32)
            group = Group(
                sequences,
                lines[begin:end] - rows[0],
                self._to_device(parameters.reshape(len(sequences), -1)),
                part.forced,
            )
            selected = rule.select(group, part)
            if part.forced is not None:
                selected = selected.masked_fill(part.forced, int(Action.UNMASK))
            if any(row.haste is not NO_HASTE for row in sequences):
                selected = hasten(group, part, selected, rule.scores(group, part))
            actions[begin:end] = selected
        return self._to_host(packed, candidates, actions)

    def _candidates(self, packed: PackedStep, logits: Tensor) -> tuple[Candidates, Tensor]:
        """The stages that all rules share; and the row of each candidate."""
        count = packed.num_candidates
        growth_bans = bans(packed, self._info) if self._growth_ids else ()
        rows, status, current, positions, numbers, without_end, *without = self._columns_to_device(
            packed.rows,
            packed.status,
            packed.current,
            packed.positions,
            packed.numbers,
            packed.without_end(),
            *growth_bans,
        )
        banned = ban_(logits, self._banned_ids, self._end_ids, without_end)
        for token, lines in zip(self._growth_ids, without, strict=True):
            banned = torch.cat([banned, ban_(logits, self._banned_ids[:0], token, lines)], dim=1)
        entropies = None
        if any(rule_of(s).wants_entropy for s in packed.sequences):
            log_sums, entropies = normaliser_and_entropy(logits, banned)
        else:
            log_sums = normaliser(logits, banned)
        tokens, forced = draw(logits, self._sampling(packed), self.noise), None
        if any(s.request.constraints for s in packed.sequences):
            forced = self.constrainer.draw_(
                packed, lambda lines: self._scores(packed, logits, lines), tokens
            )
        likelihood = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
        confidence = (likelihood - log_sums).exp_()
        candidates = Candidates(
            logits=logits[:count],
            normaliser=log_sums[:count],
            token_ids=tokens[:count],
            confidence=confidence[:count],
            order=self._order(packed),
            status=status,
            current=current,
            positions=positions,
            variants=numbers,
            entropy=None if entropies is None else entropies[:count],
            forced=forced,
        )
        return candidates, rows

    def _scores(self, packed: PackedStep, logits: Tensor, lines: Ints) -> Tensor:
        """[n, vocab_size] of candidates of one row, whose highest a draw takes."""
        sampling = self._sampling(packed, lines)
        if sampling is None:
            return logits[self._to_device(lines)]
        return perturbed(logits, sampling, self.noise)

    def _score(self, packed: PackedStep, part: Candidates, begin: int, end: int) -> Candidates:
        """With the auxiliary model's opinion of a slice of candidates, and their noise."""
        assert self.auxiliary is not None, "validation asks for an auxiliary model"
        rows = packed.rows[begin:end]
        scores = self.auxiliary.log_probabilities(
            [packed.sequences[row] for row in np.unique(rows)],
            np.unique(rows, return_inverse=True)[1],
            packed.positions[begin:end],
            part.token_ids,
            part.logits.shape[1],
        )
        temperature = packed.of_candidates(self._temperatures(packed))
        gumbel = torch.zeros_like(part.logits)
        drawn = begin + np.flatnonzero(temperature[begin:end] > 0)
        if len(drawn):
            exponentials = self.noise.token_exponentials(
                packed.noise_rows(drawn), gumbel.shape[1], gumbel.device
            )
            heat = self._to_device(temperature[drawn].astype(np.float32)).unsqueeze(1)
            gumbel[self._to_device(drawn - begin)] = -exponentials.log_() * heat
        return part.scored(scores, gumbel)

    def _guidance(self, packed: PackedStep) -> Guidance:
        scales = packed.of_candidates([s.params.cfg_scale for s in packed.sequences])
        first = packed.num_candidates
        blind = np.arange(first, first + len(packed.guided))
        return Guidance(
            self._to_device(packed.guided),
            self._to_device(blind),
            self._to_device(scales[packed.guided].astype(np.float32)),
        )

    def _sampling(self, packed: PackedStep, lines: Ints | None = None) -> Sampling | None:
        """Of all candidates, or of some."""
        params = [s.params for s in packed.sequences]
        temperature = packed.of_candidates(self._temperatures(packed))
        drawn = np.flatnonzero(temperature > 0)
        if lines is not None:
            drawn = np.intersect1d(drawn, lines)
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

    def _temperatures(self, packed: PackedStep) -> list[float]:
        return [rule_of(s).temperature(s) for s in packed.sequences]

    def _order(self, packed: PackedStep) -> Tensor:
        count = packed.num_candidates
        if not any(rule_of(s).draws_order(s) for s in packed.sequences):
            return torch.zeros(count, device=self.model.device)
        return self._to_device(self.noise.order_uniforms(packed.noise_rows(np.arange(count))))

    def _to_host(
        self, packed: PackedStep, candidates: Candidates, actions: Tensor
    ) -> list[RowStep]:
        """One copy for all, and each rule's own part on the host."""
        # tokens are below 2^31 and float32 has the width of int32
        columns = [
            actions.int(),
            candidates.token_ids.int(),
            candidates.confidence.view(torch.int32),
        ]
        wanted = 0
        if any(s.params.top_logprobs for s in packed.sequences):
            # as many whoever asks: which of equals are taken depends on their number
            wanted = min(MAX_TOP_LOGPROBS, candidates.logits.shape[1])
            values, ids = candidates.logits.topk(wanted, dim=-1)
            values -= candidates.normaliser.unsqueeze(1)
            columns += [*ids.int().unbind(1), *values.view(torch.int32).unbind(1)]
        host = torch.stack(columns).cpu().numpy()
        chosen, tokens = host[:2].astype(np.int64)
        added = chosen == int(Action.HURRY)
        chosen[added] = int(Action.UNMASK)
        confidences = host[2].view(np.float32)
        bounds = packed.bounds().tolist()
        steps = []
        for row, sequence in enumerate(packed.sequences):
            mine = slice(bounds[row], bounds[row + 1])
            proposals = Columns(
                packed.numbers[mine],
                packed.positions[mine],
                tokens[mine],
                confidences[mine],
                chosen[mine],
            )
            if sequence.params.top_logprobs:
                proposals = proposals.with_top(
                    host[3 : 3 + wanted, mine].T.astype(np.int64),
                    host[3 + wanted :, mine].view(np.float32).T,
                )
            forwards, computed = packed.forwards[row], packed.computed[row]
            try:
                settled = rule_of(sequence).settle(sequence, proposals)
                hurried = int(added[mine].sum())
                steps.append(RowStep(sequence, settled, forwards, computed, None, hurried))
            except Exception as error:
                steps.append(RowStep(sequence, [], forwards, computed, error))
        return steps

    def _columns_to_device(self, *columns: Ints) -> tuple[Tensor, ...]:
        """One copy for all."""
        if self.model.device.type == "cpu":
            return tuple(map(torch.from_numpy, columns))
        joined = torch.from_numpy(np.concatenate(columns))
        if self.model.device.type == "cuda":
            joined = joined.pin_memory()  # the copy then need not be waited for
        sent = joined.to(self.model.device, non_blocking=True)
        return sent.split_with_sizes([len(column) for column in columns])

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.model.device, non_blocking=True)
