"""docs/serving-results.md out of the figures of benchmarks.serving. Measures nothing."""

from __future__ import annotations

from typing import Any

from benchmarks import report
from benchmarks.gateway_page import table

OVER_DLMSERVE = 5.0
OVER_GENERATE = 1.5
OVER_IDEAL = 1.05

# From here on the page is written by hand.
BY_HAND = "## What it found"

_INTRODUCTION = """\
# Beside other servers

Written by `python -m benchmarks.serving --out docs`; its docstring says what is measured and how.
All load one random checkpoint in LLaDA-8B's shape and do the same work: the fixed schedule, 8
tokens a step in blocks of 32, temperature 0, no early end, no cache, float32 on the CPU, one
thread for the model on either side, asked in turn in one run.
"""


def page(figures: dict[str, Any], old: str = "") -> str:
    """old: the page so far, whose part by hand is kept."""
    machine, shape = report.machine(), figures["shape"]
    averages = ", ".join(f"{one:.1f}" for one in figures["load average"])
    versions = ", ".join(f"{name} {what}" for name, what in figures["versions"].items())
    lines = [
        _INTRODUCTION,
        f"{figures['date']}, {machine['cores']} cores ({machine['processor']}), shared with other "
        f"work: load average {averages} at the end of {figures['minutes']:.0f} minutes. Python "
        f"{machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}; "
        f"{versions}. Width {shape['width']}, {shape['layers']} layers, a vocabulary of "
        f"{shape['vocabulary']:,}: with so small a body the head weighs more than in an 8B model.",
        "",
    ]
    if figures["answers equal"]:
        lines += ["All servers gave the same text for the same prompt.", ""]
    titles = {
        "in process": "One request in process",
        "throughput": "Tokens per second over HTTP and gRPC",
        "latency": "Latency under load, over the ideal schedule",
    }
    for name, title in titles.items():
        lines += [f"## {title}", "", table(figures[name]), ""]
    lines += ["## Marks", "", *marks(figures), ""]
    lines += [f"Left out: {reason}.\n" for reason in figures["skipped"]]
    by_hand = old[old.index(BY_HAND) :] if BY_HAND in old else ""
    return "\n".join(lines) + "\n" + by_hand


def marks(figures: dict[str, Any]) -> list[str]:
    """What was asked for, and what came out."""
    lines = [
        _mark("generate.py in process, one request", row["times ours"], OVER_GENERATE)
        for row in figures["in process"]
        if row["by"] == "generate.py"
    ]
    lines += [
        _mark("dlmserve over HTTP, 8 clients", row["over dlmserve"], OVER_DLMSERVE)
        for row in figures["throughput"]
        if (row["clients"], row["server"]) == (8, "ours, HTTP") and row["over dlmserve"] != "-"
    ]
    for row in figures["latency"]:
        if row["server"] == "ours, gRPC" and row["over"] == "ideal":
            p50, p95 = row["p50 ratio"], row["p95 ratio"]
            verdict = "held" if max(p50, p95) <= OVER_IDEAL else "missed"
            lines.append(
                f"* Latency at load {row['load']} at most {OVER_IDEAL:g} times the ideal: "
                f"p50 {p50:.2f}, p95 {p95:.2f}: {verdict}."
            )
    return lines


def _mark(what: str, ratio: float, least: float) -> str:
    verdict = "held" if ratio >= least else "missed"
    return f"* At least {least:g} times the tokens per second of {what}: {ratio:.2f}: {verdict}."
