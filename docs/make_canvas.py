"""Draws docs/canvas.svg: one completion at some of its steps, from a running server.

python docs/make_canvas.py "Once upon a time" --max-new-tokens 48 --seed 7 --show 1 8 20 34 48
"""

from __future__ import annotations

import argparse
import io
import re
import time
from pathlib import Path

from rich.console import Console

from vdiff_grpc.cli.live import LiveView
from vdiff_grpc.cli.words import Given
from vdiff_grpc.client import Client

WIDTH = 84


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--show", type=int, nargs="+", default=[1, 8, 20, 34, 48])
    arguments = parser.parse_args()
    picture = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with Client(arguments.address) as client:
        ends = frozenset(client.model_info().end_token_ids)
        given = Given((arguments.prompt,), ends)
        view = LiveView(Console(file=io.StringIO(), width=WIDTH), given)
        events = client.stream(
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
            granularity="steps",
        )
        for event in events:
            view.apply(event)
            step = event.step_update.step + 1
            if event.HasField("step_update") and step in arguments.show:
                picture.print(view.frame(time.monotonic(), whole=True))
        view.close()
    svg = picture.export_svg(title=f'vdiff-grpc watch "{arguments.prompt}"')
    # rich names a font on a CDN; the viewer's own monospace font does
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    Path(__file__).with_name("canvas.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
