"""One output's canvas and its progress: the one mutable class. Knows no tensors of the device.

A canvas is per-position state: prompt, frozen, masked or committed. "Is prompt" is state, never
"id differs from the mask's". Blocks number the generated positions, so that a hole in the
middle, two holes or a suffix are the same thing as a continuation.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.attention import MaskRule
from vdiff_grpc.engine.text import TextStream
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import (
    AttentionPattern,
    CanvasSnapshot,
    ModelInfo,
    Output,
    ResolvedRequest,
    SpanKind,
    StepUpdate,
    UpdateKind,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


_MASK_RULES = {
    AttentionPattern.FULL: MaskRule.FULL,
    AttentionPattern.CAUSAL: MaskRule.CAUSAL,
}


class State(enum.IntEnum):
    """Of one canvas position."""

    PROMPT = 0
    FROZEN = 1
    MASKED = 2
    COMMITTED = 3


_SPAN_STATES = {
    SpanKind.PROMPT: State.PROMPT,
    SpanKind.FROZEN: State.FROZEN,
    SpanKind.HOLE: State.MASKED,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One canvas to compute: ids and positions [length], and the positions whose logits count."""

    token_ids: Ints
    position_ids: Ints
    rule: MaskRule
    wanted: Ints


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """What a row wants of the next forward pass: one variant, or more (guidance: two)."""

    variants: tuple[Variant, ...]


class Sequence:
    """One output of a request, from its first step to its last."""

    def __init__(
        self,
        key: int,
        request: ResolvedRequest,
        index: int,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.key = key
        self.request = request
        self.params = request.params
        self.index = index
        self.seed = request.seeds[index]
        self.mask_token_id = info.mask_token_id
        self.mask_rule = _MASK_RULES[info.attention]
        self.ids: Ints = np.array(request.canvas, dtype=np.int64)
        self.position_ids: Ints = np.arange(len(self.ids), dtype=np.int64)
        self.state = np.repeat(
            np.array([_SPAN_STATES[s.kind] for s in request.spans], dtype=np.uint8),
            [s.length for s in request.spans],
        )
        self.generated: Ints = np.flatnonzero(self.state == State.MASKED)
        self.confidences: Floats = np.zeros(len(self.ids), dtype=np.float32)
        self.commit_steps: Ints = np.zeros(len(self.ids), dtype=np.int64)
        self.bans_end = self._positions_without_end()
        hole_ends = np.cumsum([s.length for s in request.spans if s.kind is SpanKind.HOLE])
        ends = set(self.params.stop_token_ids)
        if not self.params.ignore_eos:
            ends.update(info.end_token_ids)
        self.tokenizer = tokenizer
        self.text = TextStream(
            index, tokenizer, self.params.stop_strings, frozenset(ends), hole_ends.tolist()
        )
        self.step = 0
        self.forward_passes = 0
        self.num_remasked = 0
        self.first_commit_ns = 0
        self.block = 0
        self.block_steps = _split_steps(self.params.steps, len(self.generated), self.block_length)
        self._enter_block(0)

    @property
    def block_length(self) -> int:
        return self.params.block_length

    @property
    def num_variants(self) -> int:
        return 2 if self.params.cfg_scale > 0 else 1

    @property
    def num_step_tokens(self) -> int:
        """Canvas tokens that one step of this row computes."""
        return len(self.ids) * self.num_variants

    @property
    def finished(self) -> bool:
        return self.text.end is not None

    def masked_in_block(self) -> Ints:
        """Canvas positions of the active block that are still masked, ascending."""
        positions: Ints = self.generated[self._block_slice()]
        masked: Ints = positions[self.state[positions] == State.MASKED]
        return masked

    def plan(self) -> ForwardPlan:
        """Logits are wanted for the active block's masked positions only."""
        wanted = self.masked_in_block()
        variants = [Variant(self.ids, self.position_ids, self.mask_rule, wanted)]
        if self.params.cfg_scale > 0:
            blind = self.ids.copy()
            blind[self.state <= State.FROZEN] = self.mask_token_id
            variants.append(Variant(blind, self.position_ids, self.mask_rule, wanted))
        return ForwardPlan(tuple(variants))

    def scheduled_commits(self) -> int:
        """A fixed schedule's share of this step: an even split of the block's masks.

        Earlier steps take the remainder. Source: LLaDA, ML-GSAI/LLaDA generate.py b7e6c35.
        """
        steps = self.block_steps[self.block]
        share, rest = divmod(self._block_masks, steps)
        return share + (self._step_in_block < rest)

    def commit(self, positions: Ints, token_ids: Ints, confidences: Floats) -> None:
        """Fills positions (ascending, masked) and ends the step."""
        assert (self.state[positions] == State.MASKED).all(), "a commit must fill masks"
        self.ids[positions] = token_ids
        self.state[positions] = State.COMMITTED
        self.confidences[positions] = confidences
        self.commit_steps[positions] = self.step
        if len(positions) and not self.first_commit_ns:
            self.first_commit_ns = time.monotonic_ns()
        self.forward_passes += self.num_variants
        self._push_text()

    def advance(self) -> None:
        """On to the next step, and to the next block when this one is full."""
        self.step += 1
        self._step_in_block += 1
        if not self.finished and not len(self.masked_in_block()):
            self._enter_block(self.block + 1)

    def update(self, positions: Ints) -> StepUpdate:
        """What this step filled, as told to the caller."""
        ids = self.ids[positions].tolist()
        tokenizer = self.tokenizer
        return StepUpdate(
            output_index=self.index,
            step=self.step,
            block=self.block,
            forward_passes=self.forward_passes,
            kind=UpdateKind.UNMASK,
            positions=tuple(positions.tolist()),
            token_ids=tuple(ids),
            confidences=tuple(self.confidences[positions].tolist()),
            texts=tuple(tokenizer.token_text(i) if tokenizer else "" for i in ids),
        )

    def snapshot(self) -> CanvasSnapshot:
        return CanvasSnapshot(
            output_index=self.index,
            step=self.step,
            block=self.block,
            forward_passes=self.forward_passes,
            token_ids=tuple(self.ids.tolist()),
            confidences=tuple(self.confidences.tolist()),
        )

    def output(self) -> Output:
        """Once finished."""
        end = self.text.end
        assert end is not None, "an output is taken when the sequence is finished"
        holes = sum(s.kind is SpanKind.HOLE for s in self.request.spans)
        texts = (*self.text.hole_texts, *[""] * (holes - len(self.text.hole_texts)))
        return Output(
            index=self.index,
            seed=self.seed,
            text=self.text.text,
            tokens=self.text.tokens,
            hole_texts=texts if self.request.is_template else (),
            finish_reason=end.reason,
            stop=end.stop,
            forward_passes=self.forward_passes,
            steps=self.step,
            blocks=self.block + 1,
            remasked=self.num_remasked,
            canvas=tuple(self.ids.tolist()),
        )

    def _block_slice(self) -> slice:
        return slice(self.block * self.block_length, (self.block + 1) * self.block_length)

    def _enter_block(self, block: int) -> None:
        self.block = block
        self._block_masks = len(self.masked_in_block())
        self._step_in_block = 0

    def _push_text(self) -> None:
        """Hands on the tokens that now follow the committed prefix without a gap."""
        while self.text.num_pushed < len(self.generated) and not self.finished:
            position = self.generated[self.text.num_pushed]
            if self.state[position] != State.COMMITTED:
                return
            self.text.push(
                int(self.ids[position]),
                int(position),
                int(self.commit_steps[position]),
                float(self.confidences[position]),
            )

    def _positions_without_end(self) -> npt.NDArray[np.bool_]:
        """Where end tokens may not be drawn: everywhere on request, and before frozen text."""
        if self.params.ignore_eos:
            return np.ones(len(self.ids), dtype=np.bool_)
        frozen = np.flatnonzero(self.state == State.FROZEN)
        last = int(frozen[-1]) if len(frozen) else -1
        return self.position_ids < last


def _split_steps(steps: int | None, num_positions: int, block_length: int) -> tuple[int, ...]:
    """Steps of each block: one at least, the rest in proportion to the blocks' lengths.

    With equal blocks and a number of steps that divides evenly this is LLaDA's split.
    """
    sizes = [
        min(block_length, num_positions - begin) for begin in range(0, num_positions, block_length)
    ]
    if steps is None:
        return tuple(sizes)
    spare, weight = steps - len(sizes), num_positions - len(sizes)
    split, begin = [], 0
    for size in sizes:
        end = begin + size - 1
        more = spare * end // weight - spare * begin // weight if weight else 0
        split.append(1 + more)
        begin = end
    return tuple(split)
