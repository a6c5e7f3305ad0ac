"""The engine: add, abort, step. Single-threaded; every change happens between steps."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
import torch

from vdiff_grpc.engine.assembly import assemble
from vdiff_grpc.engine.columns import Action
from vdiff_grpc.engine.constraint_checks import compiler_for
from vdiff_grpc.engine.decoding.registry import rule_of
from vdiff_grpc.engine.events import Event, Failed, Finished, LaidOut
from vdiff_grpc.engine.growing import row_of
from vdiff_grpc.engine.hurry import Hurry, outcome
from vdiff_grpc.engine.lengths import laid_out
from vdiff_grpc.engine.likelihood import begin_scoring, is_scoring
from vdiff_grpc.engine.messages import Ended, Mark, Spent, Timing
from vdiff_grpc.engine.models import loader, registry
from vdiff_grpc.engine.opened import OpenRequest
from vdiff_grpc.engine.pace import Pace
from vdiff_grpc.engine.parallel import model as parallel
from vdiff_grpc.engine.parallel.ranks import RankLostError
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.rng import Noise
from vdiff_grpc.engine.runner import RowStep
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.strategies import ConfidenceThreshold
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.told import Told
from vdiff_grpc.engine.types import (
    AttentionPattern,
    EngineConfig,
    Request,
    RequestParams,
    ResolvedRequest,
    Statistics,
)
from vdiff_grpc.engine.validation import limits_for, resolve
from vdiff_grpc.errors import (
    BudgetError,
    DeadlineError,
    EngineFaultError,
    QueueTimeoutError,
    VdiffError,
)

logger = logging.getLogger(__name__)

_UNMASK = int(Action.UNMASK)


class Engine:
    """Serves one model. Use it as a library through `generate`, or step by step.

    before_step: told the rows of every step that is about to be computed; what it raises counts
    as the step's own fault. clock: time.monotonic_ns, or a test's own. timing: of the last step;
    None when nothing was computed in it.
    """

    def __init__(
        self,
        config: EngineConfig,
        noise: Noise | None = None,
        model: loader.LoadedModel | None = None,
        on_lost: Callable[[Ended], None] = lambda ended: None,
    ) -> None:
        """Loads tokenizer and weights, unless a model is given. Raises CheckpointError.

        on_lost: told, from another thread, why one of a model's several processes has ended: no
        step is possible then.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        self.info = registry.describe(
            config.model_path,
            config.served_names[0] if config.served_names else "",
            config.aux_model_path,
        )
        self.limits = limits_for(config, self.info)
        self.tokenizer = Tokenizer.load(config.model_path)
        self._compiler = compiler_for(self.info, self.tokenizer)
        loaded = model or parallel.load(config, self.info, on_lost)
        try:
            self.runner, self.scheduler = assemble(
                config, self.info, self.limits, self.tokenizer, loaded, noise
            )
        except BaseException:
            if model is None:
                loaded.close()
            raise
        self.model = self.runner.model
        self.before_step: Callable[[Rows[Sequence]], None] = lambda rows: None
        self.clock: Callable[[], int] = time.monotonic_ns
        self._overload = config.overload
        self.hurry = Hurry(config.overload)
        self._max_queue_ns = int(config.max_queue_time_s * 1e9)
        self._pace = Pace()
        self._open: dict[int, OpenRequest] = {}
        self._spent: list[Spent] = []
        self._marks: list[Mark] = []
        self.timing: Timing | None = None
        self._counts: Counter[str] = Counter()

    def close(self) -> None:
        """Ends the other processes of a model over several; the engine is of no more use."""
        self.model.close()

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    @property
    def statistics(self) -> Statistics:
        return Statistics(
            **self._counts,
            running_rows=len(self.scheduler.running),
            waiting_rows=self.scheduler.num_waiting,
            cache_tokens=self.scheduler.reservations.num_held_tokens,
        )

    def add(self, key: int, request: ResolvedRequest, *, is_watched: bool = False) -> None:
        """Queues a request; it joins at the next step that has a place.

        key: the caller's own number, unique among open requests. is_watched: its phases are
        wanted, see take_marks. Raises QueueFullError or BudgetError.
        """
        assert key not in self._open, f"key {key} is taken"
        first = row_of(key, request, 0, self.info, self.tokenizer)
        sequences = [first] + [
            row_of(key, request, index, self.info, self.tokenizer, leader=first)
            for index in range(1, request.num_rows)
        ]
        now = self.clock()
        try:
            self.hurry.admit(sequences, self.scheduler, now)
        except BudgetError:
            self._count(budgets_missed=1)
            self._spent.append(Spent(key, 0, 0))
            raise
        self.scheduler.add(sequences, now)
        for sequence in sequences:
            rule_of(sequence).begin(sequence)
        told = {s.index: Told(s) for s in sequences}
        self._open[key] = OpenRequest(request, sequences, told, request.deadline_ns, is_watched)
        self._count(requests=1, prompt_tokens=request.num_prompt_tokens)

    def abort(self, key: int) -> None:
        """Frees the request's rows. No event follows; unknown keys are none of our business."""
        if opened := self._open.pop(key, None):
            self.scheduler.remove({key})
            self._count(requests_aborted=1)
            self._spent.append(opened.spent(key))

    def extend(self, key: int, deadline_ns: int) -> None:
        """Gives a request more time; unknown keys are none of our business."""
        if opened := self._open.get(key):
            opened.deadline_ns = deadline_ns

    def take_spent(self) -> tuple[Spent, ...]:
        """The work done for the requests that have ended without Finished since the last call."""
        spent, self._spent = self._spent, []
        return tuple(spent)

    def take_marks(self) -> tuple[Mark, ...]:
        """The phases of watched requests since the last call."""
        marks, self._marks = self._marks, []
        return tuple(marks)

    def step(self) -> list[tuple[int, Event]]:
        """One denoising step of the rows whose turn it is. Returns (key, event) in order.

        Raises what leaves the device unusable, or without memory for any step.
        """
        self.timing = None
        begin = self.clock()
        events = self._expire()
        rows = self.scheduler.schedule(begin)
        if not rows:
            return events
        num_rows, now = len(rows), self.clock()
        for row in rows:
            opened = self._open[row.key]
            if not opened.started_ns:
                opened.started_ns = now
                if opened.is_watched:
                    self._marks.append(Mark(row.key, "begun", now))
        try:
            self.hurry.prepare(rows, self.scheduler, now)
            self.before_step(rows)
            results = self.runner.step(rows)
        except (torch.AcceleratorError, torch.OutOfMemoryError, MemoryError, RankLostError):
            raise
        except Exception:
            return events + self._fail(rows)
        for row in rows:
            self.scheduler.reservations.publish(row)
        for result in results:
            key = result.sequence.key
            if key not in self._open:
                continue  # another of its rows has failed in this step
            try:
                if result.error is not None:
                    raise result.error
                events += self._apply(result)
            except Exception:
                events += self._fail([result.sequence])
        self._count(
            engine_steps=1,
            forward_passes=sum(result.forwards for result in results),
            computed_tokens=sum(result.computed for result in results),
        )
        self.scheduler.remove_finished()
        self.timing = Timing(self.clock() - now, num_rows)
        self.hurry.note(results, (self.clock() - begin) / 1e9)
        self._pace.note(self.timing.duration_ns)
        return events

    def generate(self, request: Request) -> Finished:
        """Runs one request to its end, together with whatever else is open.

        Raises InvalidRequestError, QueueFullError, DeadlineError or EngineFaultError.
        """
        key = uuid.uuid4().int
        self.add(key, self.resolve(request))
        while True:
            for owner, event in self.step():
                if owner == key and isinstance(event, Finished):
                    return event
                if owner == key and isinstance(event, Failed):
                    raise event.error

    def resolve(self, request: Request) -> ResolvedRequest:
        """Validates. Raises InvalidRequestError."""
        return resolve(request, self.info, self.limits, self.tokenizer, self._compiler)

    def warm_up(self) -> None:
        """Runs the shapes that a first user would otherwise pay for."""
        prompt = (next(i for i in range(2) if i != self.info.mask_token_id),)
        given = 1
        if self.info.attention is AttentionPattern.CANVAS:
            assert self.info.block_length is not None, "canvases have a length"
            given = self.info.block_length
        room = self.limits.max_canvas_tokens - given
        longest = min(self.limits.default_max_new_tokens, room)
        params = RequestParams(max_new_tokens=min(longest, 2), seed=0)
        if ConfidenceThreshold.NAME in self.info.strategies:  # all at once
            at_once = ConfidenceThreshold(1e-9)
            params = RequestParams(max_new_tokens=longest, seed=0, strategy=at_once)
        for temperature in (0.0, 1.0):
            heated = dataclasses.replace(params, temperature=temperature)
            self.generate(Request(TokensPrompt(prompt), heated))
        # what a cold step took is no measure
        self.hurry = Hurry(self._overload)
        self.generate(Request(TokensPrompt(prompt), params))
        self._counts.clear()

    def _apply(self, result: RowStep) -> list[tuple[int, Event]]:
        """Applies one row's logical steps and tells what its caller wants to hear."""
        row, opened = result.sequence, self._open[result.sequence.key]
        rule = rule_of(row)
        row.forward_passes += result.forwards
        row.num_computed += result.computed
        row.num_hurried += result.num_hurried
        events: list[Event] = []
        if row.search is not None and row.search.hole is None:
            events.append(self._lay_out(opened, tuple(row.search.lengths)))
        for changes in result.steps:
            changed = row.apply(changes)
            self._count(committed_tokens=int(np.count_nonzero(changed.actions == _UNMASK)))
            if len(changed) and not row.first_commit_ns:
                row.first_commit_ns = self.clock()
            done = rule.is_block_done(row)
            row.settle(block_done=done)
            if opened.is_watched:
                self._mark(opened, row, block_done=done)
            events += opened.tell(row)
            if row.advance(block_done=done):
                rule.begin(row)
            if row.finished:
                if row.params.best_of is not None:
                    begin_scoring(row)
                break
        if row.finished and not is_scoring(row):
            opened.num_done += 1
        if opened.num_done == len(opened.sequences):
            events.append(self._finish(row.key))
        return [(row.key, event) for event in events]

    def _lay_out(self, opened: OpenRequest, lengths: tuple[int, ...]) -> LaidOut:
        """Every row of the request begins, with the lengths that the first one has chosen."""
        opened.request = laid_out(opened.request, lengths)
        for row in opened.sequences:
            row.lay_out(opened.request)
            rule_of(row).begin(row)
        opened.told = {row.index: Told(row) for row in opened.sequences}
        return LaidOut(lengths)

    def _mark(self, opened: OpenRequest, row: Sequence, *, block_done: bool) -> None:
        """Notes the phases that one logical step has ended."""
        now = self.clock()
        if not opened.has_stepped:
            opened.has_stepped = True
            self._marks.append(Mark(row.key, "first_step", now, row.index))
        # A causal model's blocks are its tokens.
        if (block_done or row.finished) and self.info.attention is not AttentionPattern.CAUSAL:
            mark = Mark(row.key, "block", now, row.index, row.block, row.forward_passes)
            self._marks.append(mark)

    def _finish(self, key: int) -> Finished:
        opened = self._open.pop(key)
        arrival, now = opened.request.arrival_ns, self.clock()
        outputs, others = opened.chosen()
        firsts = [s.first_commit_ns for s in opened.sequences if s.first_commit_ns]
        self._count(**outcome(opened.request, outputs, now))
        finished = Finished(
            outputs=outputs,
            queue_time_ns=(opened.started_ns or now) - arrival,
            time_to_first_commit_ns=min(firsts) - arrival if firsts else 0,
            total_time_ns=now - arrival,
            others=others,
            shared_prompt_tokens=opened.sequences[0].num_shared,
        )
        self._count(
            requests_finished=1,
            shared_prompt_tokens=finished.shared_prompt_tokens,
            completion_tokens=finished.completion_tokens,
            finished_forward_passes=finished.forward_passes,
            requests_hurried=any(o.hurried for o in outputs),
        )
        return finished

    def _expire(self) -> list[tuple[int, Event]]:
        """Ends requests whose time is over, waiting or running."""
        events: list[tuple[int, Event]] = []
        now = self.clock()
        for key, opened in list(self._open.items()):
            request, deadline = opened.request, opened.deadline_ns
            waited = now - request.arrival_ns
            error: VdiffError | None = None
            if deadline is not None and request.partial_on_deadline:
                if deadline - self._pace.margin_ns <= now:
                    events += self._interrupt(key)
                    continue
            elif deadline is not None and deadline <= now:
                seconds = (deadline - request.arrival_ns) / 1e9
                error = DeadlineError(f"the request's time ({seconds:g} s) is over")
            if not opened.started_ns and 0 < self._max_queue_ns < waited:
                limit_s = self._max_queue_ns / 1e9
                error = QueueTimeoutError(
                    f"the request has waited {waited / 1e9:.3g} s for its first step; "
                    f"max_queue_time_s is {limit_s:g}"
                )
            if error is not None:
                self.abort(key)
                self._count(budgets_missed=request.due_ns is not None)
                events.append((key, Failed(error)))
        return events

    def _interrupt(self, key: int) -> list[tuple[int, Event]]:
        """The request's canvases as they stand, told and finished."""
        opened, events = self._open[key], list[Event]()
        for row in opened.sequences:
            if not row.finished:
                row.interrupt()
                events += opened.tell_rest(row)
        self.scheduler.remove({key})
        events.append(self._finish(key))
        return [(key, event) for event in events]

    def _fail(self, rows: list[Sequence]) -> list[tuple[int, Event]]:
        """An exception past validation is our bug: it ends the requests it touched, not us."""
        fault_id = uuid.uuid4().hex[:12]
        keys = {row.key for row in rows}
        ids = [self._open[key].request.request_id for key in keys]
        logger.exception("fault %s in a step of requests %s", fault_id, ids)
        self.scheduler.remove(keys)
        for key in keys:
            opened = self._open.pop(key)
            self._count(budgets_missed=opened.request.due_ns is not None)
            self._spent.append(opened.spent(key))
        self._count(requests_failed=len(keys))
        error: VdiffError = EngineFaultError(fault_id)
        return [(key, Failed(error)) for key in keys]

    def _count(self, **more: int) -> None:
        for name, value in more.items():
            self._counts[name] += value
