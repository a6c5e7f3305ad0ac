"""`vdiff-grpc keys`: makes, replaces, lists and removes API keys in a server's key file.

A key is printed once, to standard output, and kept nowhere: the file has its hash.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vdiff_grpc import keys
from vdiff_grpc.keys import KeyEntry, KeyFileError

_VARIABLE = "VDIFF_API_KEYS"
_KEPT = 2  # hashes of one caller after `rotate`: the new key's and the last one's


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `keys`."""
    parser.add_argument(
        "--file",
        default=os.environ.get(_VARIABLE) or None,
        metavar="FILE",
        help=f"the key file, as given to serve --api-keys ({_VARIABLE})",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = _action(actions, "add", _add, "make a key for a new caller and print it")
    add.add_argument(
        "--rights",
        type=_rights,
        default=(keys.GENERATE,),
        metavar="RIGHT,...",
        help=f"of {', '.join(keys.RIGHTS)} (default {keys.GENERATE})",
    )
    for unit in ("requests", "tokens"):
        add.add_argument(f"--{unit}-per-minute", type=_limit, metavar="N", help="default: no limit")
    add.add_argument(
        "--min-priority",
        type=_priority,
        metavar="N",
        help="the smallest priority it may ask for, and so go before others (default 0)",
    )
    add.add_argument(
        "--latency-budget-s",
        type=_budget,
        metavar="S",
        help="latency budget of its requests that say none: they may be hurried (default: none)",
    )
    _action(actions, "rotate", _rotate, "make a new key for a caller; the last one stays valid")
    _action(actions, "remove", _remove, "make a caller's keys invalid")
    listing = actions.add_parser("list", help="print who has keys", allow_abbrev=False)
    listing.set_defaults(action=_list)


def run(args: argparse.Namespace) -> int:
    """Does what the flags say. Raises KeyFileError."""
    if not args.file:
        raise KeyFileError(f"which file? Give --file, or set {_VARIABLE}")
    action: Callable[[Path, argparse.Namespace], None] = args.action
    action(Path(args.file), args)
    return 0


def _add(path: Path, args: argparse.Namespace) -> None:
    entries = keys.load(path) if path.exists() else ()
    if any(entry.name == args.name for entry in entries):
        raise KeyFileError(f"{path}: {args.name} has a key already; see `keys rotate`")
    key = keys.new_key()
    entry = KeyEntry(
        args.name,
        (keys.digest(key),),
        args.rights,
        args.requests_per_minute,
        args.tokens_per_minute,
        args.min_priority,
        args.latency_budget_s,
        datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    keys.save(path, (*entries, entry))
    _show(key)


def _rotate(path: Path, args: argparse.Namespace) -> None:
    entries = keys.load(path)
    _found(path, entries, args.name)
    key = keys.new_key()
    keys.save(
        path,
        [
            replace(entry, sha256=(keys.digest(key), *entry.sha256)[:_KEPT])
            if entry.name == args.name
            else entry
            for entry in entries
        ],
    )
    _show(key)


def _remove(path: Path, args: argparse.Namespace) -> None:
    entries = keys.load(path)
    _found(path, entries, args.name)
    keys.save(path, [entry for entry in entries if entry.name != args.name])


def _list(path: Path, args: argparse.Namespace) -> None:
    for entry in keys.load(path):
        limits = [
            f"{number} {unit} per minute"
            for number, unit in (
                (entry.requests_per_minute, "requests"),
                (entry.tokens_per_minute, "tokens"),
            )
            if number is not None
        ]
        if entry.min_priority is not None:
            limits.append(f"priority {entry.min_priority} and above")
        if entry.latency_budget_s is not None:
            limits.append(f"latency budget {entry.latency_budget_s:g} s")
        print(entry.name, ",".join(entry.rights) or "no rights", *limits, sep="\t")


def _show(key: str) -> None:
    print(key)
    print("This is the only time that the key is shown.", file=sys.stderr)


def _found(path: Path, entries: tuple[KeyEntry, ...], name: str) -> None:
    if all(entry.name != name for entry in entries):
        raise KeyFileError(f"{path}: {name} has no key")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[Path, argparse.Namespace], None],
    purpose: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=purpose, allow_abbrev=False)
    parser.add_argument("name", type=_name, metavar="NAME", help="the caller, as logs will name it")
    parser.set_defaults(action=function)
    return parser


def _name(text: str) -> str:
    try:
        return keys.check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rights(text: str) -> tuple[str, ...]:
    rights = tuple(text.split(","))
    for right in rights:
        if right not in keys.RIGHTS:
            raise argparse.ArgumentTypeError(f"{right!r} is not one of {', '.join(keys.RIGHTS)}")
    return rights


def _limit(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


_limit.__name__ = "whole number"  # argparse names the type of what int() refuses


def _budget(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return seconds


def _priority(text: str) -> int:
    number = int(text)
    if abs(number) > keys.MAX_PRIORITY:
        raise argparse.ArgumentTypeError(f"{number} is not within {keys.MAX_PRIORITY} of 0")
    return number


_priority.__name__ = "whole number"
