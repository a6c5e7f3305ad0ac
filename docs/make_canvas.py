"""Draws docs/canvas.svg and docs/infill.svg: one request at some of its steps, from a running server.

python -m docs.make_canvas "Once upon a time" --max-new-tokens 48 --seed 7 --show 1 8 20 34 48
python -m docs.make_canvas --out infill.svg --show 1 5 9 15 --temperature 0.7 --seed 2 --infill \
    'Once upon a time, there was a little girl named{{1}}. She liked to{{2..9}}. One day, her{{3}} said,{{6}} Then they{{2..9}} and went home.'

Takes the flags of `vdiff-grpc watch`.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vdiff_grpc.cli.flags import add_call_flags, add_sampling_flags, read_ask
from vdiff_grpc.cli.live import LiveView
from vdiff_grpc.client import Client

WIDTH = 84
MAX_TITLE = 70
OWN = ("--out", "--show", "--address")  # no part of the command that the picture shows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="canvas.svg", help="file name in docs/")
    parser.add_argument("--show", type=int, nargs="+", default=[1, 8, 20, 34, 48])
    add_call_flags(parser)
    add_sampling_flags(parser)
    arguments = parser.parse_args()
    ask = read_ask(arguments)
    picture = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with Client(arguments.address) as client:
        given = replace(ask.given, end_token_ids=frozenset(client.model_info().end_token_ids))
        view = LiveView(Console(file=io.StringIO(), width=WIDTH), given)
        for event in client.stream(ask.text, granularity="steps", **ask.fields):
            view.apply(event)
            step = event.step_update.step + 1
            if event.HasField("step_update") and step in arguments.show:
                picture.print(view.frame(time.monotonic(), whole=True))
        view.close()
    svg = picture.export_svg(title=f"vdiff-grpc watch {_shown(sys.argv[1:])}")
    # rich names a font on a CDN; the viewer's own monospace font does
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    Path(__file__).with_name(arguments.out).write_text(svg, encoding="utf-8")


def _shown(words: list[str]) -> str:
    """The command without what is said of the picture."""
    kept, skipping = list[str](), False
    for word in words:
        skipping = word in OWN or (skipping and not word.startswith("-") and " " not in word)
        if not skipping:
            kept.append(word)
    words_shown = shlex.join(kept)
    return words_shown if len(words_shown) <= MAX_TITLE else words_shown[:MAX_TITLE] + "…"


if __name__ == "__main__":
    main()
