"""Tables on the terminal and the same figures as JSON, with what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

Row = dict[str, Any]


def machine() -> Row:
    """What a figure depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(rows: Sequence[Row]) -> str:
    """Rows of equal keys as an aligned table."""
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Some of the rows' columns as a table of a page."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row[name]) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def progress(text: str) -> None:
    """A line on standard error, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def write(path: str, rows: Sequence[Row], **more: Any) -> None:
    """JSON beside the table; nothing when no path is given."""
    if path:
        report = {"machine": machine(), **more, "rows": list(rows)}
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
