"""`generate` and `watch`: one request, printed when it is answered or shown while it fills in."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Iterator
from dataclasses import replace

from google.protobuf import json_format

from vdiff_grpc import v1
from vdiff_grpc.cli.flags import Ask, connection_fields, read_ask
from vdiff_grpc.cli.terminal import PlainView, View, show
from vdiff_grpc.cli.words import Given, answer_title, printable
from vdiff_grpc.client import AsyncClient, Client, SpecFields


class CommandError(Exception):
    """A command cannot do its work; the message is one line for the user."""


def generate(args: argparse.Namespace) -> int:
    """Asks for text and prints it; on a terminal as it comes."""
    ask = read_ask(args)
    whole = args.json or args.best_of is not None or args.n not in (None, 1)
    with Client(args.address, **connection_fields(args)) as client:
        if sys.stdout.isatty() and not whole:
            try:
                for event in client.stream(ask.text, timeout_s=args.timeout_s, **ask.fields):
                    print(printable(event.committed.text), end="", flush=True)
            finally:
                print()
            return 0
        fields: SpecFields = {**ask.fields, "return_trajectory": args.return_trajectory}
        reply = client.generate(ask.text, timeout_s=args.timeout_s, **fields)
    if args.json:
        print(
            json_format.MessageToJson(
                reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
        return 0
    clean = printable if sys.stdout.isatty() else str
    for output in reply.outputs:
        if len(reply.outputs) > 1:
            print(answer_title(output.end, output.index))
        print(clean(output.text))
    return 0


def watch(args: argparse.Namespace) -> int:
    """Shows the canvas while it fills in."""
    ask = read_ask(args)

    async def watch() -> None:
        async with AsyncClient(args.address, **connection_fields(args)) as client:
            await show_ask(client, ask, args)

    return run_until_told(watch())


async def show_ask(client: AsyncClient, ask: Ask, args: argparse.Namespace) -> None:
    """Asks, and shows the answer's events as the flags say. Raises CommandError without rich."""
    info = await client.model_info(ask.fields.get("model", ""), timeout_s=args.timeout_s)
    given = replace(ask.given, end_token_ids=frozenset(info.end_token_ids))
    if ask.fields.get("best_of") is None:
        events = client.stream(
            ask.text, granularity="steps", timeout_s=args.timeout_s, **ask.fields
        )
    else:
        events = _judged(client, ask, args.timeout_s)
    async with contextlib.aclosing(events):
        delay_s = args.delay_s if sys.stdout.isatty() else 0.0
        await show(events, _view(given, args), delay_s)


async def _judged(
    client: AsyncClient, ask: Ask, timeout_s: float | None
) -> AsyncGenerator[v1.StreamGenerateResponse, None]:
    """The events of answers that are judged when they are whole: all candidates, unless `n` is set.

    Their canvas before the first step is told by a stream of the same request, which is left then.
    """
    fields: SpecFields = {**ask.fields, "return_trajectory": True}
    if fields.get("n") is None:
        fields["n"] = fields["best_of"]
    reply = await client.generate(ask.text, timeout_s=timeout_s, **fields)
    unjudged: SpecFields = {**ask.fields, "best_of": None, "latency_budget_s": None}
    unjudged |= {"n": fields["n"], "seed": reply.resolved.sampling.seed, "request_id": ""}
    stream = client.stream(ask.text, timeout_s=timeout_s, **unjudged)
    async with contextlib.aclosing(stream) as events:
        yield await anext(events)
    for event in _replayed(reply):
        yield event


def _replayed(reply: v1.GenerateResponse) -> Iterator[v1.StreamGenerateResponse]:
    """What follows Started: the outputs' steps side by side, their texts and their ends."""
    updates = [update for output in reply.outputs for update in output.trajectory]
    for update in sorted(updates, key=lambda update: update.step):
        yield v1.StreamGenerateResponse(step_update=update)
    for output in reply.outputs:
        for hole_index, text in enumerate(output.hole_texts or [output.text]):
            committed = v1.Committed(output_index=output.index, text=text, hole_index=hole_index)
            if hole_index == 0:
                committed.tokens.CopyFrom(output.tokens)
            yield v1.StreamGenerateResponse(committed=committed)
    finished = v1.Finished(
        ends=[output.end for output in reply.outputs], usage=reply.usage, metrics=reply.metrics
    )
    yield v1.StreamGenerateResponse(finished=finished)


def _view(given: Given, args: argparse.Namespace) -> View:
    if args.plain or not sys.stdout.isatty():
        return PlainView(sys.stdout, given)
    try:
        from rich.console import Console

        from vdiff_grpc.cli.live import FLASH_S, LiveView
    except ModuleNotFoundError:
        raise CommandError(
            "colours need rich: pip install 'vdiff-grpc[server]' or 'rich', or use --plain"
        ) from None
    return LiveView(Console(), given, flash_s=max(FLASH_S, args.delay_s))


def run_until_told(work: Coroutine[None, None, None]) -> int:
    """Runs to the end, or until SIGINT (KeyboardInterrupt) or SIGTERM; what is open is closed."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    return 0
