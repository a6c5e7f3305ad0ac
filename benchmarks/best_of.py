"""What best_of is worth by the number of looks at each candidate: accuracy on checkable tasks.

    python -m benchmarks.best_of [--task NAME ...] [--prompts N] [--temperature T] [--json FILE]

The embedded model answers each prompt eight times, from the seeds that best_of has, four tokens a pass:
one by one it is nearly always right. `first` is the
accuracy of the candidate that would have been the only one, `best of 4`, `best of 8` that of the one
with the highest score of so many, `oracle` whether any of the eight is right. The answers are the
same whatever the number of looks: only the scores differ. An answer of L tokens gets L looks at most.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import report
from benchmarks.decoding import DEMO, SEED
from benchmarks.tasks import TASKS, Instance, Task
from vdiff_grpc.engine import likelihood
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Finished
from vdiff_grpc.engine.prompt_types import ChatMessage, ChatPrompt
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import EngineConfig, Request, RequestParams
from vdiff_grpc.engine.validation import output_seed

LOOKS = (1, 2, 4, 8, 16, 32)  # answers of 9 or 11 tokens have no more than that
PER_STEP = 4
CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's candidates in the order of their seeds. passes: of all of them."""

    right: tuple[bool, ...]
    scores: tuple[float, ...]
    passes: int

    def best_of(self, count: int) -> bool:
        return self.right[max(range(count), key=lambda i: (self.scores[i], -i))]


def main() -> None:
    arguments = _arguments()
    config = EngineConfig(
        str(DEMO),
        device="cpu",
        threads=1,
        max_waiting_rows=4096,
        max_queue_time_s=0.0,
        max_request_time_s=86400.0,
    )
    engine = Engine(config)
    print(f"{report.machine()}\n{arguments.prompts} prompts a task, {CANDIDATES} candidates each\n")
    rows = []
    for task in (task for task in TASKS if task.name in arguments.task):
        instances = task.instances(arguments.prompts, SEED)
        for looks in (looks for looks in LOOKS if looks < 2 * (task.num_tokens + 1)):
            # the module's own constant: it is none of a request's parameters
            likelihood.NUM_LOOKS = looks
            judged = judge(engine, task, instances, arguments.temperature)
            rows.append(_row(task, looks, judged))
            report.progress(f"{task.name}, {looks} looks")
    print(report.table(rows))
    report.write(arguments.json, rows, prompts=arguments.prompts, temperature=arguments.temperature)


def judge(
    engine: Engine, task: Task, instances: Sequence[Instance], temperature: float
) -> list[Judged]:
    """All prompts' candidates with their scores."""
    room = task.num_tokens + 1
    for key, instance in enumerate(instances):
        params = RequestParams(
            max_new_tokens=room,
            block_length=room,
            steps=-(-room // PER_STEP),
            strategy=FixedSchedule(),
            temperature=temperature,
            seed=key,
            n=CANDIDATES,
            best_of=CANDIDATES,
        )
        prompt = ChatPrompt((ChatMessage("user", instance.ask),))
        engine.add(key, engine.resolve(Request(prompt, params)))
    judged: dict[int, Judged] = {}
    while engine.has_work:
        for key, event in engine.step():
            assert isinstance(event, Finished)
            by_seed = {output.seed: output for output in event.outputs}
            seeds = [output_seed(key, index) for index in range(CANDIDATES)]
            outputs = [by_seed[seed] for seed in seeds]
            judged[key] = Judged(
                tuple(instances[key].is_right(output.text) for output in outputs),
                tuple(output.score or 0.0 for output in outputs),
                event.forward_passes,
            )
    return [judged[key] for key in range(len(instances))]


def _row(task: Task, looks: int, judged: Sequence[Judged]) -> report.Row:
    count = len(judged)
    return {
        "task": task.name,
        "looks": looks,
        "prompts": count,
        "first": sum(one.right[0] for one in judged) / count,
        "best of 4": sum(one.best_of(4) for one in judged) / count,
        "best of 8": sum(one.best_of(8) for one in judged) / count,
        "oracle": sum(any(one.right) for one in judged) / count,
        "passes": sum(one.passes for one in judged) / count / CANDIDATES,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [task.name for task in TASKS]
    parser.add_argument("--task", nargs="+", choices=names, default=names)
    parser.add_argument("--prompts", type=int, default=200, help="of each task")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", default="", metavar="FILE", help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
