"""Draws a step's time and its arithmetic against each size, as an SVG of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

WIDTH, PANEL, HEIGHT, GAP, TOP, LEFT = 1000, 195, 260, 45, 40, 48


def draw(rows: Sequence[Row]) -> str:
    """A panel for each line of rows, both axes logarithmic; dashed: what the arithmetic predicts."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row["line"], []).append(row)
    times = [row[key] for row in rows for key in ("step ms", "predicted ms")]
    span = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 110}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT + 110}" fill="#ffffff"/>',
        *(
            _panel(line, found, LEFT + index * (PANEL + GAP), span)
            for index, (line, found) in enumerate(lines.items())
        ),
        f'<text x="{LEFT}" y="{TOP + HEIGHT + 58}" fill="#222">line: milliseconds of a step, '
        "measured; dashed: floating-point operations, from the first point on</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(title: str, rows: list[Row], left: int, span: tuple[int, int]) -> str:
    """span: powers of ten at the ends of the axis of milliseconds."""
    low, high = span
    first, last = math.log2(rows[0]["size"]), math.log2(rows[-1]["size"])

    def at(row: Row, key: str) -> tuple[float, float]:
        across = (math.log2(row["size"]) - first) / ((last - first) or 1)
        up = (math.log10(row[key]) - low) / (high - low)
        return left + across * PANEL, TOP + (1 - up) * HEIGHT

    parts = [f'<text x="{left}" y="{TOP - 14}" font-size="14" fill="#111">{title}</text>']
    for power in range(low, high + 1):
        y = TOP + (1 - (power - low) / (high - low)) * HEIGHT
        parts.append(
            f'<path d="M{left} {y:.1f}h{PANEL}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">'
            f"{10.0**power:g}</text>"
        )
    for row in rows:
        x, _ = at(row, "step ms")
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="9" '
            f'fill="#444">{row["size"]}</text>'
        )
    for key, dash in (("predicted ms", ' stroke-dasharray="4 3"'), ("step ms", "")):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(row, key) for row in rows))
        parts.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4"{dash}/>')
    for row in rows:
        x, y = at(row, "step ms")
        told = f"{row['step ms']:.3g} ms, {row['growth']:.2f} of the arithmetic"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="#1f77b4"><title>{told}</title></circle>'
        )
    return "\n".join(parts)
