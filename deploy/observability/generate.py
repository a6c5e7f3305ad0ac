"""Makes dashboard.json and alerts.yaml from the names in vdiff_grpc/telemetry.py.

    python deploy/observability/generate.py

Every panel and alert stands here, once. A test holds the files to what this makes, the names in the
queries to telemetry.py, and runs every query against a real Prometheus.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdiff_grpc import telemetry as t
from vdiff_grpc.telemetry import Instrument

HERE = Path(__file__).resolve().parent
RATE = "$__rate_interval"
# A panel's width of Grafana's 24 columns, and its height.
WIDTH, HEIGHT = 8, 7


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = "{{instance}}"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str  # as Grafana names it
    about: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Alert:
    """for_: how long it must hold."""

    name: str
    expr: str
    for_: str
    severity: str
    summary: str
    description: str


def rate(one: Instrument, window: str = RATE, where: str = "") -> str:
    (series,) = one.series
    return f"rate({series}{where}[{window}])"


def count(one: Instrument, window: str = RATE, where: str = "") -> str:
    return f"rate({one.series[2]}{where}[{window}])"


def mean(one: Instrument, window: str = RATE, by: str = "instance") -> str:
    _, total, number = one.series
    return f"sum by ({by}) (rate({total}[{window}])) / sum by ({by}) (rate({number}[{window}]))"


def quantile(share: float, one: Instrument, by: str = "") -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({one.series[0]}[{RATE}])))"


def quantiles(one: Instrument) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, one), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99))


def value(one: Instrument) -> str:
    return one.series[0]


METHOD, STATUS = t.label(t.RPC_METHOD), t.label(t.RPC_STATUS)
HTTP_STATUS, ROUTE = t.label(t.HTTP_STATUS), t.label(t.HTTP_ROUTE)
GENERATING = f'{{{METHOD}=~"vdiff.v1.GenerationService/.*"}}'
# What a server answers for; a caller who is refused or leaves is not its error.
FAILED = f'{{{METHOD}=~"vdiff.v1.GenerationService/.*",{STATUS}=~"UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE"}}'

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Requests", (
        Panel("Calls", "reqps", "Finished calls of the generation service, by their status.", (
            Query(f"sum by ({STATUS}) ({count(t.RPC_DURATION, where=GENERATING)})", f"{{{{{STATUS}}}}}"),
        )),
        Panel("Time of a request", "s", "From arrival to the last token.", quantiles(t.REQUEST_DURATION)),
        Panel("Time to the first token", "s", "From arrival in the engine to the first committed token.", quantiles(t.FIRST_TOKEN)),
        Panel("Time per output token", "s", "After the first, of one answer.", quantiles(t.OUTPUT_TOKEN)),
        Panel("Refused and failed, by reason", "reqps", "The reason that the status details name.", (
            Query(f"sum by ({t.label(t.REASON)}) ({rate(t.ERRORS)})", f"{{{{{t.label(t.REASON)}}}}}"),
        )),
        Panel("Requests that left the engine", "reqps", "Aborted: the caller left, or its time was over.", (
            Query(f"sum by ({t.label(t.OUTCOME)}) ({rate(t.REQUESTS)})", f"{{{{{t.label(t.OUTCOME)}}}}}"),
        )),
    )),
    ("Queue and engine", (
        Panel("Rows", "short", "A row is one answer. Waiting rows take part in no step yet.", (
            Query(value(t.ROWS_WAITING), "{{instance}} waiting"),
            Query(value(t.ROWS_RUNNING), "{{instance}} running"),
        )),
        Panel("Time in the queue", "s", "From arrival to the first step.", quantiles(t.QUEUE_TIME)),
        Panel("Open calls", "short", "Of all our services.", (Query(value(t.CALLS_OPEN)),)),
        Panel("Steps", "ops", "Denoising steps a second: 0 with rows waiting is no progress.", (Query(rate(t.ENGINE_STEPS)),)),
        Panel("Time of a step", "s", "Of all rows that share it.", quantiles(t.STEP_DURATION)),
        Panel("Rows in a step", "short", "Mean. More rows share the cost of a step.", (Query(mean(t.STEP_ROWS)),)),
        Panel("Ready", "short", "1: requests are taken. 0: loading, lost or draining.", (Query(value(t.ENGINE_READY)),)),
        Panel("Engine restarts", "short", "Since the server's start.", (Query(value(t.ENGINE_RESTARTS)),)),
    )),
    ("Tokens", (
        Panel("Completion tokens", "ops", "Tokens a second of finished requests.", (Query(rate(t.COMPLETION_TOKENS)),)),
        Panel("Hurried requests", "ops", "Finished a second, hurried for the sake of their latency budget.", (Query(rate(t.HURRIED)),)),
        Panel("Latency budgets", "ops", "Met and missed a second.", (
            Query(f"sum by ({t.label(t.OUTCOME)}) ({rate(t.BUDGETS)})", f"{{{{{t.label(t.OUTCOME)}}}}}"),
        )),
        Panel("Committed tokens", "ops", "Positions filled a second, as they are filled.", (Query(rate(t.COMMITTED_TOKENS)),)),
        Panel("Prompt tokens", "ops", "Tokens a second of requests that came.", (Query(rate(t.PROMPT_TOKENS)),)),
        Panel("Prompt tokens shared", "ops", "Not read again, because an earlier prompt had left them behind.", (Query(rate(t.SHARED_TOKENS)),)),
        Panel("Computed tokens", "ops", "Of all forward passes: what caches save is missing.", (Query(rate(t.COMPUTED_TOKENS)),)),
        Panel("Tokens kept", "short", "That have a place for their keys and values; rows wait where there is none left.", (Query(value(t.CACHE_TOKENS)),)),
        Panel("Forward passes", "ops", "One for each row and variant of a step.", (Query(rate(t.FORWARDS)),)),
        Panel("Tokens per forward pass", "short", "Of finished requests. 1: nothing is decoded in parallel.", (
            Query(quantile(0.5, t.TOKENS_PER_FORWARD), "p50"),
            Query(mean(t.TOKENS_PER_FORWARD), "{{instance}} mean"),
        )),
        Panel("Tokens of a request", "short", "Mean, given and generated.", (
            Query(mean(t.TOKEN_USAGE, by=t.label(t.TOKEN_TYPE)), f"{{{{{t.label(t.TOKEN_TYPE)}}}}}"),
        )),
    )),
    ("Gateway", (
        Panel("HTTP requests", "reqps", "By status; 499: the client had left.", (
            Query(f"sum by ({HTTP_STATUS}) ({count(t.HTTP_DURATION)})", f"{{{{{HTTP_STATUS}}}}}"),
        )),
        Panel("Time of an HTTP request", "s", "p90, by route.", (
            Query(quantile(0.9, t.HTTP_DURATION, ROUTE), f"{{{{{ROUTE}}}}}"),
        )),
        Panel("Time to the first event", "s", "Of streams.", quantiles(t.FIRST_EVENT)),
        Panel("Open HTTP requests", "short", "Being answered.", (Query(value(t.HTTP_ACTIVE)),)),
        Panel("Calls to the server that failed", "reqps", "After retries, by status; and how many were made again.", (
            Query(f"sum by ({STATUS}) ({rate(t.UPSTREAM_ERRORS)})", f"{{{{{STATUS}}}}}"),
            Query(f"sum({rate(t.UPSTREAM_RETRIES)})", "made again"),
        )),
        Panel("Refused by the gateway's own limit", "reqps", "429 before the server was asked.", (Query(rate(t.RATE_LIMITED)),)),
    )),
    ("Versions", (
        Panel("Server", "short", "", (Query(value(t.BUILD), "{{instance}} {{version}}"),)),
        Panel("Gateway", "short", "", (Query(value(t.GATEWAY_BUILD), "{{instance}} {{version}}"),)),
    )),
)  # fmt: skip

ALERTS = (
    Alert(
        "VdiffQueueGrowing",
        f"min_over_time({value(t.ROWS_WAITING)}[5m]) > 0\n"
        f"  and avg_over_time({value(t.ROWS_WAITING)}[5m]) > 2 * {value(t.ROWS_RUNNING)}",
        "5m", "warning",
        "{{ $labels.instance }}: more rows wait than are served",
        "Rows have waited for ten minutes, more than twice as many as run: "
        "add replicas, or raise --max-running-rows if the device has room.",
    ),
    Alert(
        "VdiffErrorRate",
        f"sum by (instance) ({count(t.RPC_DURATION, '5m', FAILED)})\n"
        f"  / sum by (instance) ({count(t.RPC_DURATION, '5m', GENERATING)}) > 0.05",
        "5m", "critical",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the generation calls fail",
        "Calls end with UNKNOWN, DEADLINE_EXCEEDED, INTERNAL or UNAVAILABLE. "
        "`vdiff_errors_total` has the reasons, the server's log the fault ids.",
    ),
    Alert(
        "VdiffNoProgress",
        f"({value(t.ROWS_RUNNING)} + {value(t.ROWS_WAITING)} > 0)\n"
        f"  and on (instance) {rate(t.ENGINE_STEPS, '2m')} == 0",
        "2m", "critical",
        "{{ $labels.instance }}: rows are held and no step is made",
        "The engine hangs or is being started again. --max-step-time-s ends a step that hangs.",
    ),
    Alert(
        "VdiffTokensPerForwardDropping",
        f"{mean(t.TOKENS_PER_FORWARD, '15m')}\n"
        f"  < 0.7 * ({mean(t.TOKENS_PER_FORWARD, '1d')})",
        "15m", "warning",
        "{{ $labels.instance }}: fewer tokens per forward pass than yesterday",
        "Thirty percent below the mean of a day: other prompts or strategies, or another model. "
        "The same answers then cost more passes.",
    ),
    Alert(
        "VdiffEngineRestarts",
        f"increase({value(t.ENGINE_RESTARTS)}[15m]) > 0",
        "0m", "warning",
        "{{ $labels.instance }}: the engine was lost and started again",
        "Open calls got UNAVAILABLE. The log says `engine process ended` and why.",
    ),
    Alert(
        "VdiffNotReady",
        f"{value(t.ENGINE_READY)} == 0",
        "15m", "critical",
        "{{ $labels.instance }}: has taken no requests for a quarter of an hour",
        "Loading, lost or draining; GetServerInfo names the state.",
    ),
    Alert(
        "VdiffGatewayUpstreamErrors",
        f"sum by (instance) ({rate(t.UPSTREAM_ERRORS, '5m')})\n"
        f"  / sum by (instance) ({count(t.HTTP_DURATION, '5m')}) > 0.05",
        "5m", "critical",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the requests fail at the server",
        "After retries. `vdiff_gateway_upstream_errors_total` has the statuses.",
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(_row(title, y, len(panels) + 1))
        y += 1
        for number, panel in enumerate(row):
            x, down = number % 3 * WIDTH, number // 3 * HEIGHT
            panels.append(_panel(panel, len(panels) + 1, x, y + down))
        y += (len(row) + 2) // 3 * HEIGHT
    return {
        "uid": "vdiff-grpc",
        "title": "vdiff-grpc",
        "tags": ["vdiff-grpc"],
        "timezone": "browser",
        "editable": True,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_DATASOURCE]},
        "panels": panels,
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_DATASOURCE = {
    "name": "datasource",
    "type": "datasource",
    "query": "prometheus",
    "label": "Data source",
}


def _row(title: str, y: int, number: int) -> dict[str, Any]:
    place = {"h": 1, "w": 24, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}  # fmt: skip


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def alerts() -> str:
    """Prometheus' rule file. JSON's strings are YAML's, too."""
    lines = [
        "# Made by generate.py from the names in vdiff_grpc/telemetry.py.",
        "groups:",
        "  - name: vdiff-grpc",
        "    rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"      - alert: {alert.name}",
            "        expr: |",
            *(f"          {line}" for line in alert.expr.splitlines()),
            f"        for: {alert.for_}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          description: {json.dumps(alert.description)}",
        ]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """What belongs into each file."""
    return {
        "dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
        "alerts.yaml": alerts(),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
