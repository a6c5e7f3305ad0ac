"""The engine's vocabulary: requests, parameters, events, limits. Knows no torch.

Everything here is frozen and picklable: it crosses the process boundary.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.constraints.automaton import HoleConstraint
from vdiff_grpc.engine.constraints.kinds import Constraint
from vdiff_grpc.engine.prompt_types import LengthChoice, Prompt
from vdiff_grpc.engine.strategies import FixedSchedule, Strategy

# --- what a caller asks -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestParams:
    """Parameters as asked: None where the caller said nothing."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    n: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    block_length: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    strategy: Strategy | None = None
    top_logprobs: int | None = None
    best_of: int | None = None
    cache: CacheKind | None = None
    cache_refresh_steps: int | None = None
    suffix_window: int | None = None
    hole_lengths: LengthChoice | None = None


MAX_TOP_LOGPROBS = 20


class Granularity(enum.Enum):
    """Which events a request wants besides its end."""

    NONE = "none"
    COMMITTED = "committed"
    STEPS = "steps"
    SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a caller gives it; `validation.resolve` turns it into a ResolvedRequest."""

    prompt: Prompt
    params: RequestParams = RequestParams()
    request_id: str = ""
    granularity: Granularity = Granularity.NONE
    stride: int = 1
    partial_on_deadline: bool = False
    priority: int | None = None
    latency_budget_ns: int | None = None
    budget_is_optional: bool = False  # the operator's: what cannot be hurried goes without
    return_trajectory: bool = False
    constraint: Constraint | None = None


# --- what the engine is given -----------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters resolved: what RequestParams left open is filled in."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    n: int
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    block_length: int
    steps: int | None  # None: the strategy has no schedule
    cfg_scale: float
    strategy: Strategy  # every parameter filled in
    top_logprobs: int
    best_of: int | None = None  # None: n answers, unjudged
    cache: CacheKind = CacheKind.NONE
    cache_refresh_steps: int = 0  # 0: at each block's begin only
    suffix_window: int | None = None  # None: all of the canvas
    hole_lengths: LengthChoice | None = None  # None: all holes have theirs


class SpanKind(enum.Enum):
    PROMPT = "prompt"
    FROZEN = "frozen"
    HOLE = "hole"
    SURPLUS = "surplus"  # generated, but beyond the answer: the rest of a last block


@dataclass(frozen=True, slots=True)
class Span:
    kind: SpanKind
    length: int


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A validated request. Only `validation.resolve` makes one.

    canvas: token ids of every position, ModelInfo.blank_id where nothing is yet.
    spans: cover the canvas in order, without gaps. seeds: one per candidate.
    is_template: the caller gave text after a hole, or holes: each hole's text is told.
    arrival_ns, deadline_ns: time.monotonic_ns(); one clock for all processes of a machine.
    priority: the smaller first. caller: among whom places and steps are shared.
    due_ns: when it should be answered, hurried if need be; the same clock.
    hole_ranges: shortest and longest of each hole where some are still to be chosen; the canvas
    then is the longest. search_tokens: that one step of the choice computes at most, or one canvas.
    growing: the same of holes that grow while they are filled.
    constraints: of holes, at most one each, in their order.
    """

    request_id: str
    canvas: tuple[int, ...]
    spans: tuple[Span, ...]
    params: SamplingParams
    seeds: tuple[int, ...]
    is_template: bool
    granularity: Granularity
    stride: int
    arrival_ns: int
    deadline_ns: int | None = None
    partial_on_deadline: bool = False
    priority: int = 0
    caller: str = ""
    due_ns: int | None = None
    return_trajectory: bool = False
    hole_ranges: tuple[tuple[int, int], ...] = ()
    search_tokens: int = 0
    growing: tuple[tuple[int, int], ...] = ()
    constraints: tuple[HoleConstraint, ...] = ()

    @property
    def whole_ending(self) -> str | None:
        """What a text that fills all positions ends with if it is whole; None: it is cut off."""
        return self.constraints[0].ending if self.constraints and not self.is_template else None

    @property
    def num_rows(self) -> int:
        return len(self.seeds)

    @property
    def num_prompt_tokens(self) -> int:
        """Given positions: prompt and frozen."""
        given = (SpanKind.PROMPT, SpanKind.FROZEN)
        return sum(span.length for span in self.spans if span.kind in given)


# --- what the engine is -----------------------------------------------------


class EngineState(enum.Enum):
    UNINITIALIZED = "uninitialized"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    ERROR = "error"


class AttentionPattern(enum.Enum):
    FULL = "full"
    BLOCK_CAUSAL = "block_causal"
    CAUSAL = "causal"
    CANVAS = "canvas"


@dataclass(frozen=True, slots=True)
class GrowthTokens:
    """By which a model grows and shrinks a hole that it fills (DreamOn).

    before, after: what it wants around a document with holes.
    """

    expand: int
    delete: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a checkpoint is, read from its config files before the weights load.

    shift: logits of position p - shift predict position p.
    block_length: of a block-causal model's attention; its blocks begin at multiples of it.
    prefix_ids, suffix_ids: what the model wants around a text.
    caches: what may be kept of a canvas; the first is the default.
    auxiliary, auxiliary_positions: name and longest canvas of the autoregressive model beside it.
    """

    name: str
    path: str
    family: str
    revision: str
    attention: AttentionPattern
    vocab_size: int
    max_positions: int
    mask_token_id: int | None
    end_token_ids: tuple[int, ...]
    supports_infill: bool
    strategies: tuple[str, ...]
    default_strategy: Strategy = FixedSchedule()
    default_temperature: float = 0.0
    suppressed_ids: tuple[int, ...] = ()  # never generated, by the checkpoint's own word
    shift: int = 0
    block_length: int | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    caches: tuple[CacheKind, ...] = (CacheKind.NONE,)
    auxiliary: str = ""
    auxiliary_positions: int = 0
    growth: GrowthTokens | None = None

    @property
    def blank_id(self) -> int:
        """Stands where nothing is yet: the mask, or an id outside the vocabulary."""
        return self.vocab_size if self.mask_token_id is None else self.mask_token_id


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request is held to.

    max_cache_tokens: whose keys and values can be kept, of all rows together.
    """

    max_canvas_tokens: int
    max_new_tokens: int
    max_block_length: int
    max_n: int
    max_running_rows: int
    max_waiting_rows: int
    max_step_tokens: int
    max_cache_tokens: int
    max_prompt_step_tokens: int
    max_request_time_s: float
    default_max_new_tokens: int
    default_block_length: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the engine's start."""

    requests: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    requests_failed: int = 0
    running_rows: int = 0
    waiting_rows: int = 0
    prompt_tokens: int = 0
    shared_prompt_tokens: int = 0  # of prompt_tokens, those that were not computed again
    computed_tokens: int = 0
    cache_tokens: int = 0  # that have a place for their keys and values now
    completion_tokens: int = 0
    committed_tokens: int = 0
    forward_passes: int = 0
    finished_forward_passes: int = 0  # of the requests whose tokens completion_tokens counts
    engine_steps: int = 0
    requests_hurried: int = 0  # of the finished
    budgets_met: int = 0
    budgets_missed: int = 0  # refused, failed or late


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine is to run; see config.py for the meaning of each."""

    model_path: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    threads: int = 0
    attention: str = "auto"
    compile: bool = False
    tensor_parallel_size: int = 1
    batch_invariant: bool = False
    max_running_rows: int = 32
    max_waiting_rows: int = 256
    max_step_tokens: int = 16384
    max_prompt_step_tokens: int = 256
    target_step_tokens: int = 0
    max_canvas_tokens: int = 0
    cache_tokens: int = 0
    share_prompts: bool = True
    max_n: int = 8
    max_request_time_s: float = 600.0
    max_queue_time_s: float = 60.0
    overload: str = "queue"
    default_max_new_tokens: int = 128
    default_block_length: int = 32
    served_names: tuple[str, ...] = ()
    aux_model_path: str = ""
