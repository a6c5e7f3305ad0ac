"""One output's canvas and its progress: the one mutable class.

A canvas is per-position state: prompt, frozen, masked or committed. "Is prompt" is state, never
"id differs from the mask's". Blocks number the generated positions, so that a hole in the
middle, two holes or a suffix are the same thing as a continuation; only where attention itself
has blocks do they follow the canvas.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from vdiff_grpc.engine.blocks import (
    mask_rule_of,
    split_blocks,
    split_steps,
    total_steps,
    without_end,
)
from vdiff_grpc.engine.caches.kinds import CacheKind, page_tokens
from vdiff_grpc.engine.caches.pages import Lease
from vdiff_grpc.engine.caches.policy import Part
from vdiff_grpc.engine.caches.registry import POLICIES
from vdiff_grpc.engine.caches.settled import page_part, whole_pages
from vdiff_grpc.engine.columns import NO_HASTE, Action, Columns, Floats, Ints, Variant
from vdiff_grpc.engine.events import FinishReason, Output, TopTokens
from vdiff_grpc.engine.lengths import LengthSearch, searching
from vdiff_grpc.engine.text import TextEnd, TextStream
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import AttentionPattern, ModelInfo, ResolvedRequest, SpanKind

# Streams of a row that keep keys and values: its canvas, its blind twin, the auxiliary model's.
CANVAS, BLIND, AUXILIARY = range(3)

_NOTHING: Ints = np.zeros(0, dtype=np.int64)


class State(enum.IntEnum):
    """Of one canvas position."""

    PROMPT = 0
    FROZEN = 1
    MASKED = 2
    COMMITTED = 3
    ABSENT = 4  # beyond the length that its hole has now: growing.py


# Plain numbers: an enum's member is looked up slowly (Python 3.11), which counts at every step.
_MASKED, _COMMITTED = int(State.MASKED), int(State.COMMITTED)
_UNMASK, _REVISE, _REMASK = int(Action.UNMASK), int(Action.REVISE), int(Action.REMASK)

_SPAN_STATES = {
    SpanKind.PROMPT: State.PROMPT,
    SpanKind.FROZEN: State.FROZEN,
    SpanKind.HOLE: State.MASKED,
    SpanKind.SURPLUS: State.MASKED,
}


class Sequence:
    """One output of a request, from its first step to its last.

    memory: the decoding rule's own state of this row; of device tensors, if it likes.
    leases: pages for keys and values, by stream; given while the row runs.
    prompt_pages: those that are computed before the first step, by what stands in them.
    num_pages_now: how many of them the next step computes. read_in_step: when it last had some.
    step_in_block: logical steps taken in the active block.
    search: while it chooses the lengths of its holes. leader: another output's row, which does.
    """

    def __init__(
        self,
        key: int,
        request: ResolvedRequest,
        index: int,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        leader: Sequence | None = None,
    ) -> None:
        self.key = key
        self.index = index
        self.seed = request.seeds[index]
        self.info = info
        self.mask_token_id = info.blank_id
        self.shift = info.shift
        self.mask_rule = mask_rule_of(info)
        self.tokenizer = tokenizer
        self.leader = leader
        self.page_tokens = page_tokens(info.block_length)
        self.leases: dict[int, Lease] = {}
        self.num_pages_now = 0
        self.read_in_step = 0
        self.haste = NO_HASTE
        self.num_hurried = 0
        self.step = 0
        self.forward_passes = 0
        self.num_remasked = self.num_revised = 0
        self.num_computed = self.num_shared = 0
        self.first_commit_ns = 0
        self.lay_out(request)

    def lay_out(self, request: ResolvedRequest) -> None:
        """Everything as it is before the first step; again when the holes' lengths are chosen."""
        self.request = request
        self.params = request.params
        self.search: LengthSearch | None = None
        if request.hole_ranges and self.leader is None:
            self.search = LengthSearch(request)
            self.params = searching(request.params)
        self.ids: Ints = np.array(request.canvas, dtype=np.int64)
        self.position_ids: Ints = np.arange(len(self.ids), dtype=np.int64)
        self.state = np.repeat(
            np.array([_SPAN_STATES[s.kind] for s in request.spans], dtype=np.uint8),
            [s.length for s in request.spans],
        )
        self.generated: Ints = np.flatnonzero(self.state == State.MASKED)
        self.confidences: Floats = np.zeros(len(self.ids), dtype=np.float32)
        self.commit_steps: Ints = np.zeros(len(self.ids), dtype=np.int64)
        self.top_tokens: dict[int, TopTokens] = {}
        self.bans_end = without_end(self.state == State.FROZEN, ignore_eos=self.params.ignore_eos)
        self.bans_any_end = bool(self.bans_end.any())
        self._masked: Ints | None = None
        hole_ends = np.cumsum([s.length for s in request.spans if s.kind is SpanKind.HOLE])
        own = () if self.params.ignore_eos else self.info.end_token_ids
        ends = frozenset((*self.params.stop_token_ids, *own))
        stops = self.params.stop_strings
        self.text = TextStream(self.index, self.tokenizer, stops, ends, hole_ends.tolist())
        self.text.whole_ending = request.whole_ending
        self.memory: Any = None
        self.blocks = split_blocks(self.generated, self.params.block_length, self.info)
        self.block_steps = split_steps(
            total_steps(self.params, len(self.generated)), [b.stop - b.start for b in self.blocks]
        )
        # a network that computes rows one by one keeps what it wants itself
        keeps = self.info.attention is not AttentionPattern.CANVAS
        self.policy = POLICIES[self.params.cache if keeps else CacheKind.NONE]
        self.cache_refresh_steps = self.params.cache_refresh_steps
        self.prompt_pages: tuple[bytes, ...] = ()
        if self.policy.shares:
            prompt = self.ids[: self.generated[0]]
            self.prompt_pages = whole_pages(prompt, self.shift, self.page_tokens)
        self._enter_block(0)

    @property
    def block_length(self) -> int:
        return self.params.block_length

    @property
    def is_guided(self) -> bool:
        return self.params.cfg_scale > 0

    @property
    def attention_block(self) -> int:
        return self.params.block_length

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_step_tokens(self) -> int:
        """Most canvas tokens that the next step of this row computes, pages of its prompt aside."""
        if self.search is not None:
            return sum(map(self.search.num_tokens, self.search.batch()))
        length = self.policy.most(self, self.leases.get(CANVAS))
        tokens = self.params.strategy.step_tokens(length, self.block_length)
        return tokens * self.num_streams

    @property
    def num_streams(self) -> int:
        """Canvases that are computed: with guidance a blind twin."""
        return 2 if self.is_guided else 1

    @property
    def num_pages_ahead(self) -> int:
        """Pages of the prompt that must be computed before the first step."""
        if not self.prompt_pages:
            return 0
        return max(len(self.prompt_pages) - self.leases[CANVAS].length // self.page_tokens, 0)

    @property
    def finished(self) -> bool:
        return self.text.end is not None

    # --- what a decoding rule asks ------------------------------------------

    def block_positions(self) -> Ints:
        """Canvas positions of the active block, ascending."""
        positions: Ints = self.generated[self.blocks[self.block]]
        return positions

    def masked_in_block(self) -> Ints:
        """Canvas positions of the active block that are still masked, ascending."""
        if self._masked is None:
            self._masked = self._in_state(self.block_positions(), _MASKED)
        return self._masked

    def committed_in_block(self) -> Ints:
        """Canvas positions of the active block that are filled, ascending."""
        return self._in_state(self.block_positions(), _COMMITTED)

    @property
    def steps_in_block(self) -> int:
        """Scheduled steps of the active block."""
        return self.block_steps[self.block]

    def scheduled_commits(self, ahead: int = 0) -> int:
        """A fixed schedule's share of this step, or of one `ahead`: an even split of the masks.

        Earlier steps take the remainder. Source: LLaDA, ML-GSAI/LLaDA generate.py b7e6c35.
        """
        step = self.step_in_block + ahead
        if step >= self.steps_in_block:
            return 0
        share, rest = divmod(self._block_masks, self.steps_in_block)
        return share + (step < rest)

    def variant(
        self, positions: Ints, ids: Ints | None = None, noise_step: int | None = None
    ) -> Variant:
        """The canvas, or `ids` in its place, with logits wanted at these canvas positions.

        Only what is not cached is computed, and nothing that no wanted position can see.
        """
        ids = self.ids if ids is None else ids
        part = self.policy.part(self, self.leases.get(CANVAS), positions)
        positions = positions[positions - self.shift < part.end]  # later blocks are not computed
        return self._of_part(part, positions, ids, noise_step)

    def pages_variants(self, num_pages: int) -> list[Variant]:
        """The next pages of the prompt, each by itself; nothing is asked of them."""
        done = self.leases[CANVAS].length // self.page_tokens
        parts = [page_part(self.leases[CANVAS], done + i) for i in range(num_pages)]
        variants = [self._of_part(part, _NOTHING, self.ids) for part in parts]
        return variants + [self.blind(v) for v in variants if self.is_guided]

    def blind(self, variant: Variant) -> Variant:
        """The variant's unconditional twin: what was given is masked."""
        given = self.state[variant.position_ids] <= State.FROZEN
        ids = np.where(given, self.mask_token_id, variant.token_ids)
        kept = variant.kept
        return variant.replaced(ids, None if kept is None else kept.of(self.leases[BLIND]))

    # --- what a step changes -------------------------------------------------

    def apply(self, changes: Columns) -> Columns:
        """One logical step's changes, which it counts. Returns what has changed on the canvas."""
        positions, actions = changes.positions, changes.actions
        if (actions == _UNMASK).all():
            assert (self.state[positions] == _MASKED).all(), "masks are filled"
            self.ids[positions] = changes.token_ids
            self.state[positions] = _COMMITTED
            self.confidences[positions] = changes.confidences
        else:
            self._change(changes)
        self.commit_steps[positions] = self.step
        self._masked = None
        if self.params.top_logprobs:
            self._keep_top(changes)
        self.step_in_block += 1
        return changes

    def settle(self, *, block_done: bool) -> None:
        """Hands on the tokens that can no longer change and follow the text without a gap."""
        settled = len(self.generated)
        if self.params.strategy.REVOCABLE:
            block = self.blocks[self.block]
            settled = block.stop if block_done else block.start
        while self.text.num_pushed < settled and not self.finished:
            position = int(self.generated[self.text.num_pushed])
            if self.state[position] != _COMMITTED:
                return
            self.text.push(*self._column(position))

    def interrupt(self) -> None:
        """Ends the row as PARTIAL, with all that is filled, whatever might have changed.

        Each hole's text is what is filled from its beginning without a gap.
        """
        while not self.finished:
            hole_end = self.text.hole_ends[len(self.text.hole_texts)]
            open_positions = self.generated[self.text.num_pushed : hole_end]
            filled = self.state[open_positions] == State.COMMITTED
            whole = bool(filled.all())
            num_first = len(filled) if whole else int(filled.argmin())
            for position in open_positions[:num_first].tolist():
                self.text.push(*self._column(position))
            if whole or self.finished:
                continue
            for position in open_positions[filled][num_first:].tolist():
                if int(self.ids[position]) in self.text.end_ids:
                    break
                self.text.push_apart(*self._column(position))
            self.text.leave_hole()
        self.text.end = TextEnd(FinishReason.PARTIAL, None)

    def advance(self, *, block_done: bool) -> bool:
        """On to the next step, and to the next block when this one is done: then True."""
        self.step += 1
        if block_done and not self.finished:
            self._enter_block(self.block + 1)
            return True
        return False

    # --- what is told ---------------------------------------------------------

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
            revised=self.num_revised,
            computed_tokens=self.num_computed,
            shared_prompt_tokens=self.num_shared,
            hurried=self.num_hurried > 0,
            canvas=tuple(self.ids.tolist()),
        )

    def _column(self, position: int) -> tuple[int, int, int, float, TopTokens | None]:
        """What is told of a filled position."""
        return (
            int(self.ids[position]),
            position,
            int(self.commit_steps[position]),
            float(self.confidences[position]),
            self.top_tokens.get(position),
        )

    def _in_state(self, positions: Ints, state: int) -> Ints:
        found: Ints = positions[self.state[positions] == state]
        return found

    def _change(self, changes: Columns) -> None:
        """Fills masks, and replaces what is filled or masks it again."""
        positions, actions = changes.positions, changes.actions
        remask = actions == _REMASK
        expected = np.where(actions == _UNMASK, _MASKED, _COMMITTED)
        assert (self.state[positions] == expected).all(), "masks are filled, the filled changed"
        self.ids[positions] = np.where(remask, self.mask_token_id, changes.token_ids)
        self.state[positions] = np.where(remask, _MASKED, _COMMITTED)
        self.confidences[positions] = np.where(remask, 0, changes.confidences)
        self.num_remasked += int(remask.sum())
        self.num_revised += int((actions == _REVISE).sum())

    def _enter_block(self, block: int) -> None:
        self.block = block
        self.seen_end = self._seen_end()
        self._masked = None
        self._block_masks = len(self.masked_in_block())
        self.step_in_block = 0
        for lease in self.leases.values():
            self.policy.enter_block(lease)

    def _of_part(
        self, part: Part, positions: Ints, ids: Ints, noise_step: int | None = None
    ) -> Variant:
        return Variant(
            token_ids=ids[part.begin : part.end],
            position_ids=self.position_ids[part.begin : part.end],
            rule=self.mask_rule,
            heads=np.maximum(positions - self.shift, 0) - part.begin,
            positions=positions,
            noise_step=self.step if noise_step is None else noise_step,
            kept=part.kept,
        )

    def _seen_end(self) -> int:
        """Masks far behind the active block are left out, but not what is given behind them."""
        window = self.params.suffix_window
        if window is None:
            return len(self.ids)
        last = np.flatnonzero(self.state != State.MASKED)[-1:].max(initial=-1)
        return min(len(self.ids), max(int(self.block_positions()[-1]) + window, int(last)) + 1)

    def _keep_top(self, changes: Columns) -> None:
        assert changes.top_ids is not None
        assert changes.top_logprobs is not None
        count = self.params.top_logprobs
        for i, position in enumerate(changes.positions.tolist()):
            ids = tuple(changes.top_ids[i, :count].tolist())
            data = tuple(self.tokenizer.token_bytes(t) for t in ids) if self.tokenizer else ()
            logprobs = tuple(changes.top_logprobs[i, :count].tolist())
            self.top_tokens[position] = TopTokens(ids, logprobs, data)
