"""One request at a time without a server: our Engine, and the peers' loops in a process beside."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gateways import PeerError
from benchmarks.serving_work import BLOCK, Work, random_prompt, works_of
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold, FixedSchedule, Strategy
from vdiff_grpc.engine.types import Request, RequestParams

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Peers:
    """Where they are; None is not there. packages: dlmserve and its transformers."""

    packages: Path | None = None
    modelling: Path | None = None
    llada: Path | None = None
    dinfer: Path | None = None


class Published:
    """benchmarks/llada_peers.py, asked over its pipe."""

    def __init__(self, process: subprocess.Popen[str], dinfer: bool) -> None:
        self._process = process
        self.has_dinfer = dinfer
        self.transformers: str = self._read()["transformers"]

    @classmethod
    @contextmanager
    def started(cls, checkpoint: Path, peers: Peers, scratch: Path) -> Iterator[Published]:
        script = Path(__file__).with_name("llada_peers.py")
        places = [checkpoint, peers.llada, peers.dinfer or ""]
        with (scratch / "llada_peers.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(script), *map(str, places)],
                env=environ(peers, scratch),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            yield cls(process, bool(peers.dinfer))
        except PeerError as error:
            tail = (scratch / "llada_peers.log").read_text().strip().rpartition("\n")[2]
            raise PeerError(f"{error}: {tail}") from error
        finally:
            process.kill()
            process.wait()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def do(self, do: str, work: Work) -> dict[str, Any]:
        more = {"new": work.new, "block": work.block, "steps": work.steps}
        return self.ask(do, prompt=list(work.prompt), **more)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError("LLaDA's process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def in_process(engine: Engine, published: Published | None, rounds: int) -> list[report.Row]:
    """Each asked for the same, in turn."""
    fixed, slow = works_of(1, seed=2)[0], Work(random_prompt(random.Random(3), 32), 32, BLOCK, 32)
    askers: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        ("fixed", "ours"): lambda: _own(engine, fixed, FixedSchedule()),
    }
    if published:
        askers["fixed", "generate.py"] = lambda: published.do("generate", fixed)
        if published.has_dinfer:
            askers["threshold", "ours"] = lambda: _own(engine, slow, ConfidenceThreshold(0.9))
            askers["threshold", "dInfer"] = lambda: published.do("threshold", slow)
    got: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in askers}
    for done in range(rounds + 1):
        for key, ask in askers.items():
            got[key].append(ask())
        report.progress(f"in process, round {done} of {rounds}")
    rows = []
    for (rule, name), answers in got.items():
        first = got[rule, "ours"]
        seconds = statistics.median(answer["s"] for answer in answers[1:])  # the first warms up
        ours = statistics.median(answer["s"] for answer in first[1:])
        rows.append(
            {
                "rule": rule,
                "by": name,
                "tokens": len(answers[0]["tokens"]),
                "forwards": answers[0]["forwards"],
                "ms/forward": seconds * 1e3 / answers[0]["forwards"],
                "tokens/s": len(answers[0]["tokens"]) / seconds,
                "times ours": seconds / ours,
                "same tokens": answers[0]["tokens"] == first[0]["tokens"],
            }
        )
    return rows


def _own(engine: Engine, work: Work, strategy: Strategy) -> dict[str, Any]:
    params = RequestParams(
        max_new_tokens=work.new,
        block_length=work.block,
        steps=work.steps if isinstance(strategy, FixedSchedule) else None,
        temperature=0.0,
        strategy=strategy,
        ignore_eos=True,
        seed=0,
    )
    begin = time.perf_counter()
    output = engine.generate(Request(TokensPrompt(work.prompt), params)).outputs[0]
    seconds = time.perf_counter() - begin
    return {"s": seconds, "tokens": list(output.tokens.ids), "forwards": output.forward_passes}


def environ(peers: Peers, scratch: Path) -> dict[str, str]:
    """Of a peer's process: its packages before ours, one thread, nothing from the network."""
    return {
        **os.environ,
        **ONE_THREAD,
        "PYTHONPATH": str(peers.packages),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
