"""What the engine's tests share: drive an engine step by step and keep what it said."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdiff_grpc.engine.assembly import banned_ids
from vdiff_grpc.engine.columns import Action, Columns
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, Finished, StepUpdate
from vdiff_grpc.engine.packing import PackedStep
from vdiff_grpc.engine.rng import Noise
from vdiff_grpc.engine.runner import Runner
from vdiff_grpc.engine.sequence import Sequence
from vdiff_grpc.engine.types import EngineConfig, Granularity, Request
from vdiff_grpc.engine.validation import resolve

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "data"
TINY = GOLDEN / "tiny-llada"


def tiny_engine(
    path: Path = TINY,
    *,
    noise: Noise | None = None,
    early_end: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    **limits: Any,
) -> Engine:
    """An engine on a tiny random checkpoint. early_end False: no token ends an answer."""
    limits.setdefault("threads", 1)  # a tiny model gains nothing from more
    config = EngineConfig(model_path=str(path), device=device, dtype=dtype, **limits)
    engine = Engine(config, noise)
    if not early_end:
        engine.info = dataclasses.replace(engine.info, end_token_ids=())
    return engine


def change(row: Sequence, action: Action, positions: list[int], ids: list[int]) -> None:
    """Applies one logical step of one kind to a row, as the engine would."""
    count = len(positions)
    row.apply(
        Columns(
            np.zeros(count, np.int64),
            np.array(positions, np.int64),
            np.array(ids, np.int64),
            np.ones(count, np.float32),
            np.full(count, action, np.int64),
        )
    )
    done = not len(row.masked_in_block())
    row.settle(block_done=done)
    row.advance(block_done=done)


def add(engine: Engine, key: int, request: Request) -> None:
    engine.add(key, resolve(request, engine.info, engine.limits, engine.tokenizer))


def run_all(engine: Engine) -> dict[int, list[Event]]:
    """Steps until nothing is open; every request's events."""
    events: dict[int, list[Event]] = defaultdict(list)
    while engine.has_work:
        for key, event in engine.step():
            events[key].append(event)
    return events


def run(engine: Engine, request: Request) -> list[Event]:
    """One request alone, told step by step."""
    add(engine, 1, dataclasses.replace(request, granularity=Granularity.STEPS))
    return run_all(engine)[1]


def same_in_company(engine: Engine, requests: list[Request]) -> dict[int, list[Event]]:
    """Each request alone, then all together: the same events. Returns them."""
    alone = {}
    for key, request in enumerate(requests):
        add(engine, key, request)
        alone[key] = run_all(engine)[key]
    for key, request in enumerate(requests):
        add(engine, key, request)
    together = run_all(engine)
    for key, events in alone.items():
        assert together[key][:-1] == events[:-1]
    return alone


def trajectory(events: list[Event]) -> list[list[tuple[int, int, float]]]:
    """Per step: (position, token, confidence) of what was committed."""
    return [
        list(zip(e.positions, e.token_ids, e.confidences, strict=True))
        for e in events
        if isinstance(e, StepUpdate)
    ]


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


class LogitsRecorder(Runner):
    """A runner that keeps every row's logits: {(key, output): [step -> tensor]}."""

    @classmethod
    def install(cls, engine: Engine) -> LogitsRecorder:
        recorder = cls(
            engine.model,
            engine.info,
            banned_ids(engine.model, engine.info, engine.tokenizer),
            engine.runner.noise,
            engine.runner.fill,
            engine.runner.auxiliary,
        )
        recorder.seen = defaultdict(list)
        engine.runner = recorder
        return recorder

    seen: dict[tuple[int, int], list[torch.Tensor]]

    def forward(self, packed: PackedStep) -> torch.Tensor:
        logits = super().forward(packed)
        for row, sequence in enumerate(packed.sequences):
            mine = torch.from_numpy(packed.rows == row)
            self.seen[sequence.key, sequence.index].append(
                logits[: packed.num_candidates][mine.to(logits.device)].cpu().clone()
            )
        return logits
