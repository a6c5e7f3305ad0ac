"""Draws accuracy against tokens per forward as an SVG of its own, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Row = dict[str, Any]

WIDTH, PANEL, HEIGHT, GAP, TOP, LEFT = 1000, 350, 340, 46, 46, 46
COLOURS = [
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#003f5c",
    "#a05195",
    "#58508d",
    "#ffa600",
    "#665191",
    "#2f4b7c",
    "#f95d6a",
    "#488f31",
]


def draw(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Two panels, the first task's and that of all others together; a line per strategy.

    rows: as `decoding.measure` makes them, the line to hold first.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row["line"], []).append(row)
    speeds = [_point(row, [name])[0] for row in rows for name in names]
    span = math.floor(math.log2(min(speeds))), math.ceil(math.log2(max(speeds)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 100}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT + 100}" fill="#ffffff"/>',
        _panel(lines, [names[0]], names[0], LEFT, span),
        _panel(lines, list(names[1:]), "each digit once", LEFT + PANEL + GAP, span),
        _legend(list(lines), LEFT + 2 * PANEL + GAP + 18),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(
    lines: dict[str, list[Row]], names: list[str], title: str, left: int, span: tuple[int, int]
) -> str:
    """span: the powers of two at the ends of the axis of tokens per forward."""
    low, high = span

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = (math.log2(point[0]) - low) / (high - low)
        return left + across * PANEL, TOP + (1 - point[1]) * HEIGHT

    held = _point(next(iter(lines.values()))[0], names)
    parts = [
        f'<text x="{left}" y="{TOP - 14}" font-size="14" fill="#111">{escape(title)}</text>',
        f'<text x="{left + PANEL / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle" fill="#444">'
        "tokens per forward</text>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at((2**low, share))
        parts.append(
            f'<path d="M{x} {y:.1f}h{PANEL}" stroke="#ddd"/>'
            f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{share:.0%}</text>'
        )
    for power in range(low, high + 1):
        x, y = at((2.0**power, 0))
        parts.append(
            f'<path d="M{x:.1f} {y}v5" stroke="#888"/>'
            f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle" fill="#444">{2.0**power:g}</text>'
        )
    x, y = at((2**low, held[1]))
    parts.append(f'<path d="M{x} {y:.1f}h{PANEL}" stroke="#111" stroke-dasharray="4 3"/>')
    for index, rows in enumerate(lines.values()):
        points = [at(_point(row, names)) for row in rows]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" opacity="0.4"/>')
        for row, (x, y) in zip(rows, points, strict=True):
            told = f"{row['setting']}: {_point(row, names)[1]:.1%} @ {_point(row, names)[0]:.2f}"
            parts.append(
                f'<g fill="{colour}">{_mark(index, x, y)}<title>{escape(told)}</title></g>'
            )
    return "\n".join(parts)


def _legend(names: list[str], left: int) -> str:
    parts = []
    for index, name in enumerate(names):
        y = TOP + 6 + 15.5 * index
        parts.append(
            f'<g fill="{COLOURS[index % len(COLOURS)]}">{_mark(index, left, y)}</g>'
            f'<text x="{left + 10}" y="{y + 4}" fill="#222">{escape(name)}</text>'
        )
    y = TOP + 6 + 15.5 * len(names)
    parts.append(
        f'<path d="M{left - 5} {y}h10" stroke="#111" stroke-dasharray="4 3"/>'
        f'<text x="{left + 10}" y="{y + 4}" fill="#222">one token per forward</text>'
    )
    return "\n".join(parts)


def _mark(index: int, x: float, y: float) -> str:
    """A circle, a square, a diamond or a triangle, so that colour alone need not tell."""
    match index % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
        case 1:
            return f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"/>'
    return f'<path d="M{x:.1f} {y - 4.4:.1f}l4.4 7.6h-8.8z"/>'


def _point(row: Row, names: Sequence[str]) -> tuple[float, float]:
    """Tokens per forward and accuracy over some of the tasks together."""
    tasks = [row["tasks"][name] for name in names]
    right, count, tokens, forwards = (
        sum(task[key] for task in tasks) for key in ("right", "count", "tokens", "forwards")
    )
    return tokens / forwards, right / count
