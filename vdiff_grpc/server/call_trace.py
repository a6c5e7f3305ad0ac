"""One call's spans: the call itself, its wait, its generation, and every block of it.

Knows neither gRPC nor where spans go. They are made as the engine's marks come in, so that a call
that fails or is cancelled has those of the way it has come.
"""

from __future__ import annotations

from vdiff_grpc import telemetry
from vdiff_grpc.engine.messages import Mark
from vdiff_grpc.tracing import Attributes, Span

_MAX_BLOCKS = 64  # with a span of its own; a call may have thousands


class CallTrace:
    """span: of the call."""

    def __init__(self, span: Span) -> None:
        self.place = span.place
        self._span = span
        self._queue: Span | None = None
        self._generate: Span | None = None
        self._begun_ns = 0
        self._block_begin_ns: dict[int, int] = {}  # by output
        self._num_blocks = 0
        self._has_ended = False
        self._later: Span | None = None
        self._later_end_ns = 0

    def note(self, mark: Mark) -> None:
        """The marks of a request come in order of time; others may follow it when we have left."""
        if self._has_ended:
            return
        if mark.phase == "queued":
            self._queue = self._span.child(telemetry.QUEUE_SPAN, begin_ns=mark.at_ns)
        elif mark.phase == "begun":
            if self._queue is not None:
                self._queue.end(end_ns=mark.at_ns)
                self._queue = None
            self._begun_ns = mark.at_ns
            self._generate = self._span.child(telemetry.GENERATE_SPAN, begin_ns=mark.at_ns)
        elif self._generate is not None:
            self._note_step(self._generate, mark)

    def end(self, attributes: Attributes, outcome: str, error: str) -> None:
        """outcome: finished, cancelled or failed. error: its type, where it is the server's."""
        self._has_ended = True
        if self._later is not None:
            count = {telemetry.BLOCK_COUNT: self._num_blocks - _MAX_BLOCKS}
            self._later.end(end_ns=self._later_end_ns, attributes=count)
        for phase in (self._queue, self._generate):
            if phase is not None:
                phase.end(attributes={telemetry.OUTCOME: outcome}, error=error)
        self._span.end(attributes=attributes, error=error)

    def _note_step(self, generate: Span, mark: Mark) -> None:
        if mark.phase == "first_step":
            first = generate.child(telemetry.FIRST_STEP_SPAN, begin_ns=self._begun_ns)
            first.end(end_ns=mark.at_ns)
            return
        begin_ns = self._block_begin_ns.get(mark.output_index, self._begun_ns)
        self._block_begin_ns[mark.output_index] = mark.at_ns
        self._num_blocks += 1
        if self._num_blocks > _MAX_BLOCKS:
            if self._later is None:
                self._later = generate.child(telemetry.LATER_BLOCKS_SPAN, begin_ns=begin_ns)
            self._later_end_ns = mark.at_ns
            return
        attributes: Attributes = {
            telemetry.OUTPUT_INDEX: mark.output_index,
            telemetry.BLOCK_INDEX: mark.block,
            telemetry.FORWARD_PASSES: mark.forward_passes,
        }
        block = generate.child(telemetry.BLOCK_SPAN, begin_ns=begin_ns, attributes=attributes)
        block.end(end_ns=mark.at_ns)
