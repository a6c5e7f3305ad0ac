"""The flags that say what to generate, shared by `generate` and `watch`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from vdiff_grpc import v1
from vdiff_grpc.cli.words import Given
from vdiff_grpc.client import (
    STRATEGIES,
    ConnectionFields,
    SpecFields,
    Strategy,
    choice,
    confidence_threshold,
    fixed_schedule,
    json_schema,
    regex,
    strategy,
    template,
)
from vdiff_grpc.client.connection import DEFAULT_ADDRESS

ADDRESS_VARIABLE = "VDIFF_ADDRESS"
CA_VARIABLE = "VDIFF_TLS_CA"
# Not a flag: a command line can be read by everybody on the machine.
KEY_VARIABLE = "VDIFF_API_KEY"
_SYSTEM = "system"
_INPUT = "-"


def _unsigned(maximum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not 0 <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not from 0 to {maximum}")
        return value

    # argparse names the type in its message on what int() refuses.
    number.__name__ = "whole number"
    return number


uint32 = _unsigned(2**32 - 1)
uint64 = _unsigned(2**64 - 1)


def strategy_flag(text: str) -> Strategy:
    """Reads `wino` or `wino,threshold=0.5,threshold_back=0.8`."""
    name, *pairs = text.split(",")
    parameters: dict[str, float | str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(f"{pair!r} is not PARAMETER=VALUE")
        parameters[key] = _number(value)
    try:
        return strategy(name, **parameters)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class ConnectionFlagError(ValueError):
    """A key or certificate of this caller cannot be had; the message says which."""


class AskError(ValueError):
    """A template that is none, or a schema that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the client's arguments, and what is known of the canvas without the server."""

    text: str | None
    fields: SpecFields
    given: Given


def add_call_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and the prompt."""
    parser.add_argument("prompt", help="text to continue; - reads standard input")
    add_connection_flags(parser)
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"file with the API key; else it is taken from {KEY_VARIABLE}",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="refused if not served there")
    parser.add_argument(
        "--timeout", dest="timeout_s", type=float, metavar="SECONDS", help="give up after so long"
    )
    parser.add_argument("--request-id", default="", metavar="ID", help="names the call in logs")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--chat", action="store_true", help="the prompt is a chat's user message")
    shape.add_argument("--suffix", metavar="TEXT", help="text that follows what is generated")
    shape.add_argument(
        "--infill",
        action="store_true",
        help="the prompt has holes: {{4}} of 4 positions, {{2..12}} of a length that is chosen, "
        r"{{4:regex=...}}, {{4:choice=a|b}} or {{4:json_schema=...}} with a constraint; \{{ is the "
        "braces themselves",
    )
    add_constraint_flags(parser)


def add_constraint_flags(parser: argparse.ArgumentParser) -> None:
    """What the answer must be."""
    group = parser.add_argument_group(
        "constraint", "What the whole answer must be (docs/constraints.md)."
    ).add_mutually_exclusive_group()
    group.add_argument("--regex", metavar="PATTERN", help="it matches, in Rust's syntax")
    group.add_argument(
        "--choice", action="append", metavar="TEXT", help="it is one of these; repeated"
    )
    group.add_argument(
        "--json-schema",
        metavar="FILE",
        help="it is JSON that the schema in this file allows; - reads standard input, and what "
        "begins with { is the schema itself",
    )


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how to trust it."""
    parser.add_argument(
        "--address",
        default=os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"the server (default {DEFAULT_ADDRESS}, {ADDRESS_VARIABLE})",
    )
    parser.add_argument(
        "--tls-ca",
        default=os.environ.get(CA_VARIABLE) or None,
        metavar="FILE",
        help="use TLS, and trust servers that a certificate of this file (PEM) has signed; "
        f"'system' for the well-known ones ({CA_VARIABLE})",
    )
    for what in ("cert", "key"):
        parser.add_argument(
            f"--tls-{what}",
            metavar="FILE",
            help=f"this caller's own {'certificate chain' if what == 'cert' else 'key'}, PEM, for "
            "servers that want one",
        )
    parser.add_argument(
        "--tls-name",
        metavar="NAME",
        help="the name that the server's certificate must have, if not its address",
    )


def connection_fields(args: argparse.Namespace) -> ConnectionFields:
    """How the client is to connect. Raises ConnectionFlagError."""
    fields = ConnectionFields()
    try:
        if args.api_key_file:
            fields["api_key"] = Path(args.api_key_file).read_text(encoding="utf-8").strip()
        elif os.environ.get(KEY_VARIABLE):
            fields["api_key"] = os.environ[KEY_VARIABLE].strip()
        if args.tls_ca:
            ca = None if args.tls_ca == _SYSTEM else Path(args.tls_ca).read_bytes()
            key, cert = (
                Path(path).read_bytes() if path else None for path in (args.tls_key, args.tls_cert)
            )
            fields["credentials"] = grpc.ssl_channel_credentials(ca, key, cert)
            fields["server_name"] = args.tls_name
    except OSError as error:
        raise ConnectionFlagError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if bool(args.tls_key) != bool(args.tls_cert) or (args.tls_cert and not args.tls_ca):
        raise ConnectionFlagError("--tls-cert and --tls-key go together, and with --tls-ca")
    if args.tls_name and not args.tls_ca:
        raise ConnectionFlagError("--tls-name goes with --tls-ca")
    return fields


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per parameter; what is not given is the server's default."""
    group = parser.add_argument_group(
        "sampling", "The server's defaults hold for what is left out."
    )
    group.add_argument("--max-new-tokens", type=uint32, metavar="N", help="positions to generate")
    group.add_argument("--temperature", type=float, metavar="X", help="0: the most likely token")
    group.add_argument("--top-p", type=float, metavar="X", help="nucleus, (0, 1]")
    group.add_argument("--top-k", type=uint32, metavar="K", help="0 keeps everything")
    group.add_argument("--seed", type=uint64, metavar="N", help="same seed, same tokens")
    group.add_argument("--n", type=uint32, metavar="N", help="number of answers")
    group.add_argument(
        "--best-of",
        type=uint32,
        metavar="N",
        help="of so many the n that the model finds likeliest",
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be repeated"
    )
    group.add_argument(
        "--stop-token-id", type=uint32, action="append", metavar="ID", help="may be repeated"
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="never generate an end token"
    )
    group.add_argument("--block-length", type=uint32, metavar="N", help="positions per block")
    group.add_argument("--steps", type=uint32, metavar="N", help="denoising steps over all blocks")
    group.add_argument("--cfg-scale", type=float, metavar="X", help="classifier-free guidance")
    group.add_argument(
        "--priority", type=int, metavar="N", help="of those that wait the smaller goes first"
    )
    group.add_argument(
        "--latency-budget",
        dest="latency_budget_s",
        type=float,
        metavar="SECONDS",
        help="in which the answer should be complete: it is hurried if need be (docs/anytime.md)",
    )
    group.add_argument(
        "--partial-on-deadline",
        action="store_true",
        default=None,
        help="when --timeout comes, answer with what is filled",
    )
    group.add_argument(
        "--hole-lengths",
        choices=("confidence", "native"),
        help="with --infill: how open lengths are found (docs/infill.md)",
    )
    group.add_argument(
        "--cache",
        choices=("none", "settled", "prefix", "dual"),
        help="what is kept from pass to pass; prefix and dual are approximate (docs/caches.md)",
    )
    group.add_argument(
        "--cache-refresh-steps",
        type=uint32,
        metavar="N",
        help="with prefix or dual: compute the whole canvas anew after N passes",
    )
    group.add_argument(
        "--suffix-window",
        type=uint32,
        metavar="N",
        help="leave out masks more than N positions behind the active block",
    )
    group.add_argument(
        "--top-logprobs", type=uint32, metavar="N", help="tell the N most likely tokens (--json)"
    )
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--strategy",
        type=strategy_flag,
        metavar="NAME[,PARAMETER=VALUE...]",
        help=f"how positions are chosen: {', '.join(STRATEGIES)}; docs/decoding.md has their "
        "parameters",
    )
    how.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="short for --strategy confidence_threshold,threshold=X",
    )
    how.add_argument(
        "--remasking",
        choices=("low_confidence", "random"),
        help="short for --strategy fixed_schedule,remasking=...",
    )


def read_ask(args: argparse.Namespace) -> Ask:
    """What the flags ask for, read from standard input where they say so. Raises AskError."""
    if args.prompt == args.json_schema == _INPUT:
        raise AskError("prompt and --json-schema cannot both be standard input")
    if args.prompt == _INPUT:
        args.prompt = sys.stdin.read().removesuffix("\n")
    how: Strategy | None = args.strategy
    if args.threshold is not None:
        how = confidence_threshold(args.threshold)
    elif args.remasking is not None:
        how = fixed_schedule(args.remasking)
    constraint = _constraint(args)
    fields: SpecFields = {
        "model": args.model,
        "request_id": args.request_id,
        "suffix": args.suffix,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "seed": args.seed,
        "n": args.n,
        "best_of": args.best_of,
        "stop": args.stop,
        "stop_token_ids": args.stop_token_id,
        "ignore_eos": args.ignore_eos,
        "block_length": args.block_length,
        "steps": args.steps,
        "cfg_scale": args.cfg_scale,
        "priority": args.priority,
        "latency_budget_s": args.latency_budget_s,
        "partial_on_deadline": args.partial_on_deadline,
        "constraint": constraint,
        "hole_lengths": args.hole_lengths,
        "cache": args.cache,
        "cache_refresh_steps": args.cache_refresh_steps,
        "suffix_window": args.suffix_window,
        "strategy": how,
        "top_logprobs": args.top_logprobs,
    }
    given = Given(budget_s=args.latency_budget_s, constraint=constraint)
    if args.chat:
        fields["messages"] = [{"role": "user", "content": args.prompt}]
        return Ask(None, fields, replace(given, texts=(f"> {args.prompt}\n",)))
    if not args.infill:
        return Ask(args.prompt, fields, replace(given, texts=(args.prompt, args.suffix or "")))
    try:
        segments = fields["infill"] = template(args.prompt)
    except ValueError as error:
        raise AskError(str(error)) from None
    texts = [""]
    for segment in segments:
        if isinstance(segment, v1.Hole):
            texts.append("")
        else:
            texts[-1] += str(segment)
    holes = tuple(segment for segment in segments if isinstance(segment, v1.Hole))
    return Ask(None, fields, replace(given, texts=tuple(texts), holes=holes))


def _constraint(args: argparse.Namespace) -> v1.Constraint | None:
    if args.regex is not None:
        return regex(args.regex)
    if args.choice is not None:
        return choice(*args.choice)
    return None if args.json_schema is None else json_schema(_schema(args))


def _schema(args: argparse.Namespace) -> str:
    """A file's text, standard input's, or the flag's own."""
    where: str = args.json_schema
    if where.lstrip().startswith("{"):
        return where
    if where == _INPUT:
        return sys.stdin.read()
    try:
        return Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AskError(f"--json-schema {where}: cannot be read: {reason}") from None
