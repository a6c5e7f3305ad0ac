"""A rank's process: holds its part of the weights and computes each forward pass that it is told.

It ignores SIGINT and SIGTERM, as the engine does, and ends when the engine is gone, even in the
middle of a pass.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import traceback
from multiprocessing.connection import Connection

from vdiff_grpc.engine.parallel.messages import Broken, Forward, Loaded, Part, Reserve, Stop


def main(handle: int) -> None:
    """handle: of this process's end of the engine's socket pair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(handle)
    try:
        part: Part = connection.recv()
        steps: queue.SimpleQueue[Forward | Reserve] = queue.SimpleQueue()
        threading.Thread(target=_receive_all, args=(connection, steps), daemon=True).start()
        _serve(connection, part, steps)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        with contextlib.suppress(OSError):  # the engine is gone
            connection.send(
                Broken(f"{type(error).__name__}: {reason}", "".join(traceback.format_exc()))
            )
    os._exit(1)  # without a clean-up in which a broken device can hang


def _serve(connection: Connection, part: Part, steps: queue.SimpleQueue[Forward | Reserve]) -> None:
    """Loads, then computes. Never returns."""
    import torch

    from vdiff_grpc.engine.attention import AttentionLayout
    from vdiff_grpc.engine.models import loader
    from vdiff_grpc.engine.models.sharding import Group

    torch.set_num_threads(part.threads)
    device = torch.device(part.device)
    group = Group.join(part.rank, part.size, device, part.store, exact=part.exact)
    model = loader.load(part.path, part.device, part.dtype, group=group)
    connection.send(Loaded())
    while True:
        step = steps.get()
        if isinstance(step, Reserve):
            model = model.reserving(step.num_slots)
            continue
        layout = AttentionLayout.of_lengths(
            step.lengths, step.rules, step.windows, merge=step.merge, backends=step.backends
        )
        ids, positions, head = (
            torch.from_numpy(values).to(device)
            for values in (step.token_ids, step.position_ids, step.head)
        )
        model.logits(ids, positions, layout, head)


def _receive_all(connection: Connection, steps: queue.SimpleQueue[Forward | Reserve]) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # the engine is gone
        if isinstance(message, Stop):
            os._exit(0)
        steps.put(message)
