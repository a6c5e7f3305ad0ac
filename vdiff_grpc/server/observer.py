"""What is measured of the server: its calls as metrics and spans, its engine as metrics.

Nothing here depends on a prompt, a generated text or a key; no label on what a client may choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc

from vdiff_grpc import telemetry, tracing, v1, vllm
from vdiff_grpc.engine.messages import Timing
from vdiff_grpc.meters import Meters, Values
from vdiff_grpc.server.call_trace import CallTrace
from vdiff_grpc.tracing import Tracer

if TYPE_CHECKING:
    from vdiff_grpc.server.async_engine import AsyncEngine
    from vdiff_grpc.server.interceptors import Call

_GENERATING = (
    "GenerationService/Generate",
    "GenerationService/StreamGenerate",
    "VllmEngine/Generate",
)
# By the name without the package, as calls have it.
_METHODS = {
    f"{service.name}/{method.name}": f"{service.full_name}/{method.name}"
    for contract in (v1.generation_pb2, vllm.vllm_engine_pb2)
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# What the conventions count as a server's own failure; the other codes are the caller's doing.
_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Observer:
    """names: of the served model. tracer: None where no spans are exported."""

    def __init__(self, names: tuple[str, ...], version: str) -> None:
        self.meters = meters = Meters()
        self.tracer: Tracer | None = None
        self._names = names
        meters.record(
            telemetry.RPC_DURATION,
            telemetry.REQUEST_DURATION,
            telemetry.FIRST_TOKEN,
            telemetry.OUTPUT_TOKEN,
            telemetry.TOKEN_USAGE,
            telemetry.QUEUE_TIME,
            telemetry.TOKENS_PER_FORWARD,
            telemetry.STEP_DURATION,
            telemetry.STEP_ROWS,
            telemetry.ERRORS,
            telemetry.CALLS_OPEN,
        )
        meters.read(telemetry.BUILD, lambda: {(version,): 1})

    def watch(self, engine: AsyncEngine) -> None:
        """From now on its counters are there to be read."""
        read = self.meters.read
        read(telemetry.ROWS_RUNNING, lambda: {(): engine.statistics.running_rows})
        read(telemetry.ROWS_WAITING, lambda: {(): engine.num_waiting_rows})
        read(telemetry.ENGINE_READY, lambda: {(): engine.ready})
        read(telemetry.ENGINE_RESTARTS, lambda: {(): engine.num_restarts})
        read(telemetry.ENGINE_STEPS, lambda: {(): engine.statistics.engine_steps})
        read(telemetry.FORWARDS, lambda: {(): engine.statistics.forward_passes})
        read(telemetry.PROMPT_TOKENS, lambda: {(): engine.statistics.prompt_tokens})
        read(telemetry.COMPLETION_TOKENS, lambda: {(): engine.statistics.completion_tokens})
        read(telemetry.SHARED_TOKENS, lambda: {(): engine.statistics.shared_prompt_tokens})
        read(telemetry.COMPUTED_TOKENS, lambda: {(): engine.statistics.computed_tokens})
        read(telemetry.CACHE_TOKENS, lambda: {(): engine.statistics.cache_tokens})
        read(telemetry.COMMITTED_TOKENS, lambda: {(): engine.statistics.committed_tokens})
        read(telemetry.HURRIED, lambda: {(): engine.statistics.requests_hurried})
        read(
            telemetry.BUDGETS,
            lambda: {
                ("met",): engine.statistics.budgets_met,
                ("missed",): engine.statistics.budgets_missed,
            },
        )

        def outcomes() -> Values:
            counts = engine.statistics
            return {
                ("finished",): counts.requests_finished,
                ("aborted",): counts.requests_aborted,
                ("failed",): counts.requests_failed,
            }

        read(telemetry.REQUESTS, outcomes)

    def stepped(self, timing: Timing) -> None:
        self.meters.observe(telemetry.STEP_DURATION, timing.duration_ns / 1e9)
        self.meters.observe(telemetry.STEP_ROWS, timing.num_rows)

    def begun(self, rpc: str, metadata: Mapping[str, str]) -> CallTrace | None:
        """A call has come; whoever logs in its task names its trace from now on."""
        self.meters.add(telemetry.CALLS_OPEN, 1)
        parent = None
        if given := metadata.get(tracing.TRACEPARENT):
            parent = tracing.parse(given, metadata.get(tracing.TRACESTATE, ""))
        if self.tracer is None:
            tracing.current.set(parent)
            return None
        method = _METHODS[rpc]
        attributes = {telemetry.RPC_SYSTEM: telemetry.GRPC, telemetry.RPC_METHOD: method}
        trace = CallTrace(self.tracer.begin(method, parent, attributes))
        tracing.current.set(trace.place)
        return trace

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        error = code.name if code in _FAILURES else ""
        meters = self.meters
        meters.add(telemetry.CALLS_OPEN, -1)
        meters.observe(telemetry.RPC_DURATION, seconds, _METHODS[call.rpc], code.name, error)
        if code is not grpc.StatusCode.OK and call.reason:
            meters.add(telemetry.ERRORS, 1, _reason(call))
        model = call.model if call.model in self._names else telemetry.OTHER
        if call.rpc in _GENERATING:
            exemplar = None if call.trace is None else call.trace.place.exemplar
            meters.observe(
                telemetry.REQUEST_DURATION,
                seconds,
                *(call.operation, model, error),
                exemplar=exemplar,
            )
            if call.finished is not None:
                self._finished(call, model, exemplar)
        if call.trace is not None:
            outcome = "finished"
            if code is not grpc.StatusCode.OK:
                outcome = "cancelled" if code is grpc.StatusCode.CANCELLED else "failed"
            call.trace.end(_attributes(call, code, model), outcome, error)

    def refused(self, method: str, code: grpc.StatusCode, reason: str) -> None:
        """A call was turned away at the door. method: as the caller gave it."""
        known = method.removeprefix("/")
        known = known if known in _METHODS.values() else telemetry.OTHER
        self.meters.observe(telemetry.RPC_DURATION, 0.0, known, code.name, "")
        self.meters.add(telemetry.ERRORS, 1, reason)

    def _finished(self, call: Call, model: str, exemplar: dict[str, str] | None) -> None:
        finished = call.finished
        assert finished is not None
        meters, about = self.meters, (call.operation, model)
        tokens, forwards = finished.completion_tokens, finished.forward_passes
        meters.observe(telemetry.TOKEN_USAGE, call.prompt_tokens, *about, "input")
        meters.observe(telemetry.TOKEN_USAGE, tokens, *about, "output")
        meters.observe(telemetry.QUEUE_TIME, finished.queue_time_ns / 1e9)
        if forwards:
            meters.observe(telemetry.TOKENS_PER_FORWARD, tokens / forwards)
        first_ns = finished.time_to_first_commit_ns
        if not first_ns:
            return
        meters.observe(telemetry.FIRST_TOKEN, first_ns / 1e9, *about, exemplar=exemplar)
        more = tokens / len(finished.candidates) - 1
        if more > 0:
            rest_s = (finished.total_time_ns - first_ns) / 1e9
            meters.observe(telemetry.OUTPUT_TOKEN, rest_s / more, *about)


def _reason(call: Call) -> str:
    """Without the fields of a wrong request."""
    return call.reason.partition(":")[0]


def _attributes(
    call: Call, code: grpc.StatusCode, model: str
) -> dict[str, str | int | float | list[str]]:
    found: dict[str, str | int | float | list[str]] = {
        telemetry.RPC_STATUS: code.name,
        telemetry.REQUEST_ID: call.request_id,
    }
    if call.rpc in _GENERATING:
        found[telemetry.OPERATION] = call.operation
        found[telemetry.PROVIDER] = telemetry.PROVIDER_NAME
        found[telemetry.REQUEST_MODEL] = model
    if code is not grpc.StatusCode.OK:
        if call.reason:
            found[telemetry.REASON] = _reason(call)
    elif call.finished is not None:
        found[telemetry.INPUT_TOKENS] = call.prompt_tokens
        found[telemetry.OUTPUT_TOKENS] = call.tokens or 0
        found[telemetry.FORWARD_PASSES] = call.forwards or 0
        found[telemetry.FINISH_REASONS] = call.reason.split(",")
    return found
