"""docs/gateway-results.md out of the figures of benchmarks.gateway. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import report

MEMORY_MIB = 60
START_S = 0.5

# From here on the page is written by hand.
BY_HAND = "## With a load tool"

_INTRODUCTION = """\
# What the gateway costs

Written by `python -m benchmarks.gateway --out docs`; its docstring says what is measured and what
the differences between the gateways are. All stand in front of one process that answers at once
with the same 48 pieces of text, run at the same time on the same machine with their own defaults,
and are asked in turn. `direct` is the upstream's own answer to a gRPC call of grpc.aio (to HTTP for
LiteLLM), `added` what the gateway puts on top, as the median over rounds with its quartiles. Below
0: the gateway reads the stream faster than grpc.aio, the client of the direct call, does. Where the
quartiles of two gateways overlap there is no telling which adds less; the 99th percentiles are
mostly those of the machine. Processor time is what is least disturbed.
"""


def page(figures: dict[str, Any], skipped: Sequence[str], old: str) -> str:
    """old: the page so far, whose part by hand is kept."""
    machine = report.machine()
    averages = ", ".join(f"{one:.1f}" for one in figures["load average"])
    lines = [
        _INTRODUCTION,
        f"{machine['cores']} cores ({machine['processor']}), shared with other work: load average "
        f"{averages} at the end. Python {machine['python']}; {figures['rounds']} rounds of "
        f"{figures['requests']} requests of each kind, {figures['load']} requests for the processor "
        f"time, {figures['starts']} starts. The raw socket and the stand-in's HTTP, without a "
        f"gateway: {figures['floor ms']['JSON']:.3f} ms JSON, {figures['floor ms']['SSE']:.2f} ms "
        "SSE.",
        "",
        table(figures["latency"]),
        "",
        table(figures["processes"]),
        "",
        *_marks(figures),
        *[f"Left out: {reason}.\n" for reason in skipped],
    ]
    by_hand = old[old.index(BY_HAND) :] if BY_HAND in old else ""
    return "\n".join(lines) + "\n" + by_hand


def _marks(figures: dict[str, Any]) -> list[str]:
    """What was asked for, and what came out."""
    ours = figures["processes"][0]
    lines = [
        f"* Memory below {MEMORY_MIB} MB: {ours['loaded MiB'] * 1.048576:.0f} MB after the load.",
        f"* Started within {START_S} s: {ours['start s']:.2f} s to the first 200.",
    ]
    added = {(row["mode"], row["gateway"]): row["added p50 ms"] for row in figures["latency"]}
    for (mode, name), value in added.items():
        if name == "smg":
            own = added[mode, ours["gateway"]]
            verdict = "held" if own <= value else "missed"
            lines.append(f"* {mode}: {own:.2f} ms added, smg {value:.2f} ms: {verdict}.")
    return [*lines, ""]


def table(rows: Sequence[report.Row]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
