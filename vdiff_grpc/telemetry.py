"""Every metric, span and attribute name of server and gateway. Knows nothing of how they are recorded.

Names follow OpenTelemetry's semantic conventions 1.45.0 (RPC, HTTP) and, for generative AI, which has
left that repository since, those of 1.37.0; what they do not name is under `vdiff.`. No attribute of a
metric has a value that a client may choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCOPE = "vdiff_grpc"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.45.0"
SERVER = "vdiff-grpc"  # service.name where OTEL_SERVICE_NAME says nothing
GATEWAY = "vdiff-gateway"

# --- attributes ---------------------------------------------------------------

ERROR_TYPE = "error.type"
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_SCHEME = "url.scheme"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
TOKEN_TYPE = "gen_ai.token.type"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
REQUEST_ID = "vdiff.request.id"
REASON = "vdiff.reason"
OUTCOME = "vdiff.outcome"
FORWARD_PASSES = "vdiff.forward_passes"
OUTPUT_INDEX = "vdiff.output.index"
BLOCK_INDEX = "vdiff.block.index"
BLOCK_COUNT = "vdiff.block.count"
VERSION = "version"

GRPC = "grpc"
PROVIDER_NAME = "vdiff"
CHAT = "chat"
TEXT_COMPLETION = "text_completion"
OTHER = "_OTHER"  # the conventions' word for a value outside the known ones

# --- spans --------------------------------------------------------------------
# Those of a call are named by its method, an HTTP request's by method and route.

QUEUE_SPAN = "vdiff.queue"
GENERATE_SPAN = "vdiff.generate"
FIRST_STEP_SPAN = "vdiff.first_step"
BLOCK_SPAN = "vdiff.block"
LATER_BLOCKS_SPAN = "vdiff.later_blocks"

# --- metrics ------------------------------------------------------------------

Kind = Literal["counter", "gauge", "histogram"]

_UNITS = {"s": "_seconds"}
# Of a refusal in milliseconds to a long answer.
_CALL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# The conventions' own, with the last ones for long answers.
_REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)  # fmt: skip
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
# A diffusion step may give several tokens: finer at the lower end than the conventions' own.
_OUTPUT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)  # fmt: skip
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS_PER_FORWARD = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric. unit: as UCUM writes it; what stands in braces is not part of a name.

    constant: attributes that every series of it has.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    constant: tuple[tuple[str, str], ...] = ()

    @property
    def family(self) -> str:
        """The name in Prometheus, without what it puts behind a counter's and a histogram's."""
        return label(self.name) + _UNITS.get(self.unit, "")

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind == "histogram":
            return tuple(self.family + end for end in ("_bucket", "_sum", "_count"))
        return (f"{self.family}_total",) if self.kind == "counter" else (self.family,)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all its attributes, in Prometheus."""
        return tuple(label(name) for name in (*self.attributes, *dict(self.constant)))


def label(name: str) -> str:
    """An attribute's or a metric's name as Prometheus writes it."""
    return name.replace(".", "_")


def http_method(method: str) -> str:
    """Of an HTTP request, for a metric: a client may send names of its own, as many as it likes."""
    return method if method in _HTTP_METHODS else OTHER


_HTTP_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_GEN_AI = (OPERATION, REQUEST_MODEL)
_PROVIDED = ((PROVIDER, PROVIDER_NAME),)

RPC_DURATION = Instrument(
    "rpc.server.call.duration", "histogram", "s",
    "From a call's arrival to its end.",
    (RPC_METHOD, RPC_STATUS, ERROR_TYPE), _CALL_S, ((RPC_SYSTEM, GRPC),),
)  # fmt: skip
REQUEST_DURATION = Instrument(
    "gen_ai.server.request.duration", "histogram", "s",
    "From a generation request's arrival to its last token.",
    (*_GEN_AI, ERROR_TYPE), _REQUEST_S, _PROVIDED,
)  # fmt: skip
FIRST_TOKEN = Instrument(
    "gen_ai.server.time_to_first_token", "histogram", "s",
    "From a request's arrival in the engine to its first committed token.",
    _GEN_AI, _FIRST_TOKEN_S, _PROVIDED,
)  # fmt: skip
OUTPUT_TOKEN = Instrument(
    "gen_ai.server.time_per_output_token", "histogram", "s",
    "Time after the first committed token, by the tokens of one answer beyond the first.",
    _GEN_AI, _OUTPUT_TOKEN_S, _PROVIDED,
)  # fmt: skip
TOKEN_USAGE = Instrument(  # named from the client's side, but a server knows the same
    "gen_ai.client.token.usage", "histogram", "{token}",
    "Tokens of a finished request.",
    (*_GEN_AI, TOKEN_TYPE), _TOKENS, _PROVIDED,
)  # fmt: skip
QUEUE_TIME = Instrument(
    "vdiff.queue.duration", "histogram", "s",
    "From a finished request's arrival to its first step.", (), _CALL_S,
)  # fmt: skip
TOKENS_PER_FORWARD = Instrument(
    "vdiff.request.tokens_per_forward", "histogram", "{token}",
    "Completion tokens of a finished request by its forward passes.", (), _TOKENS_PER_FORWARD,
)  # fmt: skip
STEP_DURATION = Instrument(
    "vdiff.step.duration", "histogram", "s", "One denoising step of all rows that share it.",
    (), _STEP_S,
)  # fmt: skip
STEP_ROWS = Instrument(
    "vdiff.step.rows", "histogram", "{row}", "Rows that shared a step.", (), _ROWS
)
ERRORS = Instrument(
    "vdiff.errors", "counter", "{call}",
    "Calls that were refused or failed, by the reason that their status details name.", (REASON,),
)  # fmt: skip
CALLS_OPEN = Instrument("vdiff.calls.open", "gauge", "{call}", "Calls being answered.")
ROWS_WAITING = Instrument(
    "vdiff.rows.waiting", "gauge", "{row}", "Rows that were taken in and take part in no step yet."
)
ROWS_RUNNING = Instrument("vdiff.rows.running", "gauge", "{row}", "Rows that share steps.")
ENGINE_READY = Instrument(
    "vdiff.engine.ready",
    "gauge",
    "{engine}",
    "1 when requests are taken, else 0: loading, lost, draining.",
)
ENGINE_RESTARTS = Instrument(
    "vdiff.engine.restarts", "counter", "{restart}", "Times that a lost engine was started again."
)
ENGINE_STEPS = Instrument("vdiff.engine.steps", "counter", "{step}", "Denoising steps.")
FORWARDS = Instrument(
    "vdiff.forward_passes", "counter", "{pass}", "Forward passes, one for each row and variant."
)
REQUESTS = Instrument(
    "vdiff.requests", "counter", "{request}", "Requests that have left the engine.", (OUTCOME,)
)
HURRIED = Instrument(
    "vdiff.requests.hurried", "counter", "{request}",
    "Finished requests that were hurried for the sake of their latency budget.",
)  # fmt: skip
BUDGETS = Instrument(
    "vdiff.latency_budgets", "counter", "{request}",
    "Requests with a latency budget: met, or missed, refused and failed ones included.", (OUTCOME,),
)  # fmt: skip
PROMPT_TOKENS = Instrument(
    "vdiff.tokens.prompt", "counter", "{token}", "Given tokens of the requests that came."
)
COMPLETION_TOKENS = Instrument(
    "vdiff.tokens.completion", "counter", "{token}", "Generated tokens of finished requests."
)
COMMITTED_TOKENS = Instrument(
    "vdiff.tokens.committed", "counter", "{token}", "Positions filled, those refilled included."
)
SHARED_TOKENS = Instrument(
    "vdiff.tokens.shared", "counter", "{token}",
    "Prompt tokens of finished requests whose keys and values an earlier prompt had left behind.",
)  # fmt: skip
COMPUTED_TOKENS = Instrument(
    "vdiff.tokens.computed", "counter", "{token}", "Tokens that forward passes have computed."
)
CACHE_TOKENS = Instrument(
    "vdiff.cache.tokens", "gauge", "{token}",
    "Tokens that have a place for their keys and values.",
)  # fmt: skip
BUILD = Instrument("vdiff.build.info", "gauge", "{build}", "Version of the server.", (VERSION,))

SERVER_METRICS = (
    RPC_DURATION, REQUEST_DURATION, FIRST_TOKEN, OUTPUT_TOKEN, TOKEN_USAGE, QUEUE_TIME,
    TOKENS_PER_FORWARD, STEP_DURATION, STEP_ROWS, ERRORS, CALLS_OPEN, ROWS_WAITING, ROWS_RUNNING,
    ENGINE_READY, ENGINE_RESTARTS, ENGINE_STEPS, FORWARDS, REQUESTS, PROMPT_TOKENS,
    COMPLETION_TOKENS, COMMITTED_TOKENS, SHARED_TOKENS, COMPUTED_TOKENS, CACHE_TOKENS, HURRIED,
    BUDGETS, BUILD,
)  # fmt: skip

HTTP_DURATION = Instrument(
    "http.server.request.duration", "histogram", "s",
    "From a request's headers to the end of its answer; status 499: the client had left.",
    (HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS), _CALL_S,
)  # fmt: skip
HTTP_ACTIVE = Instrument(
    "http.server.active_requests", "gauge", "{request}", "Requests being answered."
)
FIRST_EVENT = Instrument(
    "vdiff.gateway.time_to_first_event", "histogram", "s",
    "From a request's headers to the first event of its stream.", (HTTP_ROUTE,), _CALL_S,
)  # fmt: skip
RATE_LIMITED = Instrument(
    "vdiff.gateway.rate_limited_requests", "counter", "{request}",
    "Requests refused by the gateway's own limit.",
)  # fmt: skip
UPSTREAM_RETRIES = Instrument(
    "vdiff.gateway.upstream_retries", "counter", "{call}",
    "Calls to the model server that were made again after UNAVAILABLE.",
)  # fmt: skip
UPSTREAM_ERRORS = Instrument(
    "vdiff.gateway.upstream_errors", "counter", "{call}",
    "Calls to the model server that ended in an error, after retries.", (RPC_STATUS,),
)  # fmt: skip
GATEWAY_BUILD = Instrument(
    "vdiff.gateway.build.info", "gauge", "{build}", "Version of the gateway.", (VERSION,)
)

GATEWAY_METRICS = (
    HTTP_DURATION, HTTP_ACTIVE, FIRST_EVENT, RATE_LIMITED, UPSTREAM_RETRIES, UPSTREAM_ERRORS,
    GATEWAY_BUILD,
)  # fmt: skip
