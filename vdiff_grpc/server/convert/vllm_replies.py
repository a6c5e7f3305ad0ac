"""The engine's types as the replies of vLLM's contract.

Its callers make the text themselves, of token ids, and look for stop strings in it. So they are
told the ids up to the one that completes a stop string, which are not part of our own answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from vdiff_grpc import vllm
from vdiff_grpc.engine import events, types
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.server.convert.replies import least_room

_REASONS = {events.FinishReason.STOP: "stop", events.FinishReason.LENGTH: "length"}
_LEAST_LOGPROB = -9999.0  # of a probability of 0


class Replies:
    """One request's. with_logprobs: they were asked for, be it none but the token's own."""

    def __init__(
        self,
        request: types.ResolvedRequest,
        tokenizer: Tokenizer | None,
        *,
        streams: bool,
        with_logprobs: bool,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._streams = streams
        self._with_logprobs = with_logprobs

    def of(self, event: events.Event) -> Iterator[vllm.GenerateResponse]:
        match event:
            case events.Committed():
                if event.tokens.ids:
                    yield self._chunk(event.output_index, event.tokens)
            case events.Finished():
                for output in event.outputs:
                    rest = self._rest(output)
                    if rest and self._streams:
                        yield self._chunk(output.index, events.Tokens(rest))
                    yield self._complete(output, rest)

    def _chunk(self, index: int, tokens: events.Tokens) -> vllm.GenerateResponse:
        return vllm.GenerateResponse(
            chunk=vllm.GenerateStreamChunk(
                token_ids=tokens.ids,
                prompt_tokens=self._request.num_prompt_tokens,
                completion_tokens=len(tokens.ids),
                output_logprobs=self._logprobs(tokens),
                index=index,
            )
        )

    def _complete(self, output: events.Output, rest: tuple[int, ...]) -> vllm.GenerateResponse:
        ids = output.tokens.ids + rest
        complete = vllm.GenerateComplete(
            output_ids=ids,
            finish_reason=_REASONS[output.finish_reason],
            prompt_tokens=self._request.num_prompt_tokens,
            completion_tokens=len(ids),
            output_logprobs=self._logprobs(output.tokens),
            index=output.index,
        )
        if isinstance(output.stop, str):
            complete.matched_stop_str = output.stop
        elif output.stop in self._request.params.stop_token_ids:
            complete.matched_token_id = output.stop
        return vllm.GenerateResponse(complete=complete)

    def _rest(self, output: events.Output) -> tuple[int, ...]:
        """What ended the answer: the token that was asked for, or the tokens of the stop string."""
        if isinstance(output.stop, int):
            asked = output.stop in self._request.params.stop_token_ids
            return (output.stop,) if asked else ()
        if output.stop is None or self._tokenizer is None:
            return ()
        ids = output.tokens.ids
        begin = _hole_begin(self._request) + len(ids)
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        at, stop = len(output.text), output.stop
        end = begin
        while not data.decode("utf-8", "replace").startswith(stop, at):
            data += self._tokenizer.token_bytes(output.canvas[end])
            end += 1
        return output.canvas[begin:end]

    def _logprobs(self, tokens: events.Tokens) -> vllm.OutputLogProbs | None:
        if not (self._with_logprobs and tokens.confidences):
            return None
        return vllm.OutputLogProbs(
            token_logprobs=[math.log(c) if c > 0 else _LEAST_LOGPROB for c in tokens.confidences],
            token_ids=tokens.ids,
            top_logprobs=[
                vllm.TopLogProbs(
                    values=[max(value, _LEAST_LOGPROB) for value in top.logprobs],
                    token_ids=top.ids,
                )
                for top in tokens.top_tokens
            ],
        )


def model_info(info: types.ModelInfo, limits: types.EngineLimits) -> vllm.GetModelInfoResponse:
    return vllm.GetModelInfoResponse(
        model_path=info.name,
        is_generation=True,
        max_context_length=limits.max_canvas_tokens,
        vocab_size=info.vocab_size,
        served_model_name=info.name,
        model_type=info.family,
        eos_token_ids=info.end_token_ids,
        max_req_input_len=limits.max_canvas_tokens - least_room(info),
    )


def loads(
    timestamp: str, version: str, counters: types.Statistics, max_running_rows: int
) -> vllm.GetLoadsResponse:
    running, waiting = counters.running_rows, counters.waiting_rows
    load = vllm.SchedulerLoad(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_total_reqs=running + waiting,
        utilization=running / max_running_rows,
        max_running_requests=max_running_rows,
    )
    return vllm.GetLoadsResponse(
        timestamp=timestamp, version=version, dp_rank_count=1, loads=[load]
    )


def _hole_begin(request: types.ResolvedRequest) -> int:
    """Where the answer begins. A prompt of text or ids leaves one hole."""
    position = 0
    for span in request.spans:
        if span.kind is types.SpanKind.HOLE:
            break
        position += span.length
    return position
