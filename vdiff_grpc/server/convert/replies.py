"""The engine's types as the contract's replies."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from vdiff_grpc import v1
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine import events, types
from vdiff_grpc.engine.caches.kinds import APPROXIMATE, CacheKind
from vdiff_grpc.engine.prompts import MAX_SEGMENTS
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.server.convert.strategies import set_strategy
from vdiff_grpc.server.usage import Used


def generate_response(
    info: types.ModelInfo, request: types.ResolvedRequest, finished: events.Finished
) -> v1.GenerateResponse:
    return v1.GenerateResponse(
        request_id=request.request_id,
        model=info.name,
        model_revision=info.revision,
        outputs=[_output(output) for output in finished.outputs],
        usage=_usage(request, finished),
        metrics=_metrics(finished),
        resolved=_resolved(request.params),
    )


def started(
    info: types.ModelInfo, request: types.ResolvedRequest, tokenizer: Tokenizer | None
) -> v1.StreamGenerateResponse:
    layout = v1.CanvasLayout(
        spans=[
            v1.CanvasSpan(kind=f"SPAN_KIND_{span.kind.name}", length=span.length)
            for span in request.spans
        ],
        mask_token_id=info.blank_id,
    )
    if request.granularity is not types.Granularity.COMMITTED:
        layout.token_ids.extend(request.canvas)
        layout.texts.extend(_texts(request.canvas, info, tokenizer))
    return v1.StreamGenerateResponse(
        started=v1.Started(
            request_id=request.request_id,
            model=info.name,
            model_revision=info.revision,
            resolved=_resolved(request.params),
            prompt_tokens=request.num_prompt_tokens,
            layout=layout,
        )
    )


def stream_response(
    info: types.ModelInfo,
    request: types.ResolvedRequest,
    event: events.StreamEvent,
    tokenizer: Tokenizer | None,
) -> v1.StreamGenerateResponse:
    match event:
        case events.StepUpdate():
            update = _step_update(event, event.output_index)
            return v1.StreamGenerateResponse(step_update=update)
        case events.CanvasSnapshot():
            texts = _texts(event.token_ids, info, tokenizer)
            return v1.StreamGenerateResponse(snapshot=_snapshot(event, texts))
        case events.Committed():
            committed = v1.Committed(
                output_index=event.output_index,
                text=event.text,
                tokens=_tokens(event.tokens),
                hole_index=event.hole_index,
            )
            return v1.StreamGenerateResponse(committed=committed)
        case events.Finished():
            finished = v1.Finished(
                ends=[_end(output) for output in event.outputs],
                usage=_usage(request, event),
                metrics=_metrics(event),
            )
            return v1.StreamGenerateResponse(finished=finished)
        case events.Failed():
            raise event.error


def model_info_response(
    info: types.ModelInfo,
    names: tuple[str, ...],
    limits: types.EngineLimits,
    defaults: types.SamplingParams,
    *,
    has_tokenizer: bool,
    has_chat_template: bool,
    supports_tools: bool,
) -> v1.GetModelInfoResponse:
    resolved = _resolved(defaults)
    resolved.sampling.ClearField("seed")  # there is no default: it is drawn
    return v1.GetModelInfoResponse(
        model=info.name,
        aliases=names[1:],
        revision=info.revision,
        family=info.family,
        attention=f"ATTENTION_PATTERN_{info.attention.name}",
        cache=_cache_policy(info.caches[0]),
        caches=[
            _cache_policy(kind)
            for kind in info.caches
            if limits.max_cache_tokens or kind not in APPROXIMATE
        ],
        vocab_size=info.vocab_size,
        mask_token_id=info.mask_token_id,
        end_token_ids=info.end_token_ids,
        has_tokenizer=has_tokenizer,
        has_chat_template=has_chat_template,
        supports_tools=supports_tools,
        supports_infill=info.supports_infill,
        strategies=info.strategies,
        limits=v1.Limits(
            max_canvas_tokens=limits.max_canvas_tokens,
            max_new_tokens=limits.max_new_tokens,
            max_block_length=limits.max_block_length,
            max_n=limits.max_n,
            max_running_rows=limits.max_running_rows,
            max_waiting_rows=limits.max_waiting_rows,
            max_step_tokens=limits.max_step_tokens,
            max_request_time=duration(limits.max_request_time_s),
            max_prompt_tokens=limits.max_canvas_tokens - least_room(info),
            max_template_segments=MAX_SEGMENTS,
            max_cache_tokens=limits.max_cache_tokens,
            max_prompt_tokens_per_step=limits.max_prompt_step_tokens,
        ),
        defaults=resolved,
        block_length=info.block_length,
        auxiliary_model=info.auxiliary,
        grows_holes=info.growth is not None,
    )


def own_limits(config: ServerConfig) -> v1.Limits:
    """What the server holds requests to beyond the engine."""
    window_s, queue_s = config.request_id_window_s, config.max_queue_time_s
    return v1.Limits(
        max_queue_time=duration(queue_s) if queue_s else None,
        max_calls_per_caller=config.max_calls_per_caller,
        max_tokens_in_flight=config.max_tokens_in_flight,
        max_message_bytes=config.max_message_bytes,
        request_id_window=duration(window_s) if window_s else None,
    )


def usage(callers: Mapping[str, Used]) -> list[v1.CallerUsage]:
    return [
        v1.CallerUsage(
            caller=caller,
            requests=used.requests,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            forward_passes=used.forward_passes,
        )
        for caller, used in sorted(callers.items())
    ]


def engine_state(state: types.EngineState, *, draining: bool) -> str:
    """The name of the contract's enum value."""
    if draining:
        return "ENGINE_STATE_DRAINING"
    return f"ENGINE_STATE_{state.name}"


def statistics(counters: types.Statistics, num_refused: int) -> v1.Statistics:
    return v1.Statistics(
        requests=counters.requests,
        requests_finished=counters.requests_finished,
        requests_aborted=counters.requests_aborted,
        requests_failed=counters.requests_failed,
        requests_refused=num_refused,
        running_rows=counters.running_rows,
        waiting_rows=counters.waiting_rows,
        prompt_tokens=counters.prompt_tokens,
        completion_tokens=counters.completion_tokens,
        forward_passes=counters.forward_passes,
        engine_steps=counters.engine_steps,
        tokens_per_forward=_ratio(counters.completion_tokens, counters.finished_forward_passes),
        shared_prompt_tokens=counters.shared_prompt_tokens,
        computed_tokens=counters.computed_tokens,
        cache_tokens=counters.cache_tokens,
        requests_hurried=counters.requests_hurried,
        budgets_met=counters.budgets_met,
        budgets_missed=counters.budgets_missed,
    )


def count_tokens_response(ids: list[int], spans: list[types.Span]) -> v1.CountTokensResponse:
    kinds = (types.SpanKind.PROMPT, types.SpanKind.FROZEN)
    given = sum(span.length for span in spans if span.kind in kinds)
    return v1.CountTokensResponse(tokens=given, token_ids=ids)


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _resolved(params: types.SamplingParams) -> v1.ResolvedParams:
    diffusion = v1.DiffusionParams(
        block_length=params.block_length,
        steps=params.steps,
        cfg_scale=params.cfg_scale,
        cache=_cache_policy(params.cache),
        cache_refresh_steps=params.cache_refresh_steps or None,
        suffix_window=params.suffix_window,
        hole_lengths=params.hole_lengths and f"HOLE_LENGTHS_{params.hole_lengths.name}",
    )
    set_strategy(diffusion, params.strategy)
    sampling = v1.SamplingParams(
        max_new_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=params.seed,
        n=params.n,
        ignore_eos=params.ignore_eos,
        top_logprobs=params.top_logprobs,
        best_of=params.best_of,
    )
    if params.stop_strings or params.stop_token_ids:
        sampling.stop.strings.extend(params.stop_strings)
        sampling.stop.token_ids.extend(params.stop_token_ids)
    return v1.ResolvedParams(sampling=sampling, diffusion=diffusion)


def _cache_policy(kind: CacheKind) -> str:
    return f"CACHE_POLICY_{kind.name}"


def _output(output: events.Output) -> v1.Output:
    return v1.Output(
        index=output.index,
        text=output.text,
        tokens=_tokens(output.tokens),
        hole_texts=output.hole_texts,
        end=_end(output),
        trajectory=[_step_update(update, output.index) for update in output.trajectory],
    )


def _tokens(tokens: events.Tokens) -> v1.Tokens:
    return v1.Tokens(
        ids=tokens.ids,
        positions=tokens.positions,
        steps=tokens.steps,
        confidences=tokens.confidences,
        token_bytes=tokens.token_bytes,
        text_offsets=tokens.text_offsets,
        top_tokens=[
            v1.TopTokens(ids=top.ids, logprobs=top.logprobs, token_bytes=top.token_bytes)
            for top in tokens.top_tokens
        ],
    )


def _end(output: events.Output) -> v1.OutputEnd:
    return v1.OutputEnd(
        index=output.index,
        seed=output.seed,
        finish_reason=f"FINISH_REASON_{output.finish_reason.name}",
        stop_string=output.stop if isinstance(output.stop, str) else None,
        stop_token_id=output.stop if isinstance(output.stop, int) else None,
        forward_passes=output.forward_passes,
        completion_tokens=len(output.tokens.ids),
        score=output.score,
    )


def _usage(request: types.ResolvedRequest, finished: events.Finished) -> v1.Usage:
    return v1.Usage(
        prompt_tokens=request.num_prompt_tokens,
        completion_tokens=finished.completion_tokens,
        shared_prompt_tokens=finished.shared_prompt_tokens,
    )


def _metrics(finished: events.Finished) -> v1.Metrics:
    outputs, forward_passes = finished.candidates, finished.forward_passes
    return v1.Metrics(
        forward_passes=forward_passes,
        tokens_per_forward=_ratio(finished.completion_tokens, forward_passes),
        steps=sum(output.steps for output in outputs),
        blocks=sum(output.blocks for output in outputs),
        remasked=sum(output.remasked for output in outputs),
        queue_time_ns=finished.queue_time_ns,
        time_to_first_commit_ns=finished.time_to_first_commit_ns,
        total_time_ns=finished.total_time_ns,
        revised=sum(output.revised for output in outputs),
        computed_tokens=sum(output.computed_tokens for output in outputs),
        hurried=any(output.hurried for output in outputs),
    )


def _step_update(update: events.StepUpdate, output_index: int) -> v1.StepUpdate:
    """output_index: best_of numbers the outputs when all is known."""
    return v1.StepUpdate(
        output_index=output_index,
        step=update.step,
        block=update.block,
        forward_passes=update.forward_passes,
        kind=f"UPDATE_KIND_{update.kind.name}",
        positions=update.positions,
        token_ids=update.token_ids,
        confidences=update.confidences,
        texts=update.texts,
        hurried=update.hurried,
    )


def _snapshot(snapshot: events.CanvasSnapshot, texts: list[str]) -> v1.CanvasSnapshot:
    return v1.CanvasSnapshot(
        output_index=snapshot.output_index,
        step=snapshot.step,
        block=snapshot.block,
        forward_passes=snapshot.forward_passes,
        token_ids=snapshot.token_ids,
        confidences=snapshot.confidences,
        texts=texts,
    )


def _texts(
    token_ids: tuple[int, ...], info: types.ModelInfo, tokenizer: Tokenizer | None
) -> list[str]:
    """What StepUpdate says of each token; empty where nothing is yet."""
    if tokenizer is None:
        return [""] * len(token_ids)
    text = tokenizer.token_text
    return ["" if token_id == info.blank_id else text(token_id) for token_id in token_ids]


def least_room(info: types.ModelInfo) -> int:
    """Positions that a prompt leaves free at least."""
    if info.attention is types.AttentionPattern.CANVAS:
        return info.block_length or 1
    return 1


def _ratio(one: int, other: int) -> float:
    return one / other if other else 0.0
