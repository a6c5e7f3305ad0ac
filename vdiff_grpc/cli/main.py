"""The command line: flags and environment in, exit codes out.

0 done; 1 failed, with one line on standard error; 2 wrong flags; 130 Ctrl-C. Imports neither
torch nor rich before a command needs them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata, util

import grpc

from vdiff_grpc import config
from vdiff_grpc.cli import asking, health, keys
from vdiff_grpc.cli.asking import CommandError
from vdiff_grpc.cli.flags import (
    Ask,
    AskError,
    ConnectionFlagError,
    add_call_flags,
    add_sampling_flags,
    uint32,
    uint64,
)
from vdiff_grpc.cli.run import Address, AddressError, free_address, parse_address
from vdiff_grpc.cli.run import run as run_both
from vdiff_grpc.cli.words import Given, printable
from vdiff_grpc.client import AsyncClient, ClientError, SpecFields, UnavailableError
from vdiff_grpc.errors import VdiffError

PROG = "vdiff-grpc"
DEMO_PROMPT = "Once upon a time, there was a little"
DEMO_DELAY_S = 0.05

_EXTRAS = {
    "server": ("torch", "transformers", "tokenizers", "prometheus_client"),
    "gateway": ("starlette", "msgspec", "uvicorn"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    args.arguments = arguments
    try:
        return command(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left, as `head` does: nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except UnavailableError as error:
        if error.reason:
            return _fail(_told(error))
        return _fail(_unreachable(getattr(args, "address", "the server"), error))
    except ClientError as error:
        return _fail(_told(error))
    except (
        CommandError,
        AddressError,
        AskError,
        ConnectionFlagError,
        VdiffError,
        UnicodeError,
    ) as error:
        return _fail(str(error))


# --- commands ---------------------------------------------------------------


def _serve(args: argparse.Namespace) -> int:
    settings = config.from_flags(args, os.environ)
    _require("server")
    from vdiff_grpc.server import app

    return asyncio.run(app.serve(settings))


def _run(args: argparse.Namespace) -> int:
    settings = config.from_flags(args, os.environ)
    _require("server")
    _require("gateway")
    from gateway import config as gateway_config

    front_settings = gateway_config.load_config([], os.environ)
    if any(
        getattr(options, name)
        for options in (settings, front_settings)
        for name in ("tls_cert", "tls_key", "tls_client_ca", "upstream_ca")
        if hasattr(options, name)
    ):
        raise CommandError(
            "run starts server and gateway side by side, without TLS; for TLS start "
            f"`{PROG} serve` and `vdiff-gateway`"
        )
    server = _free(args.address, Address(settings.host, settings.port))
    gateway = _free(args.gateway_address, Address(front_settings.host, front_settings.port))
    if server == gateway:
        raise CommandError(f"server and gateway cannot both listen on {server}")

    def banner() -> None:
        print(_banner(settings.served_names[0], server, gateway), flush=True)

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_addresses(own)
    _, server_args = own.parse_known_args(args.arguments[1:])
    front = ["--server", str(server.reachable), "--host", gateway.host, "--port", str(gateway.port)]
    if f"{gateway_config.ENV_PREFIX}REQUESTS_PER_MINUTE" not in os.environ:
        front += ["--requests-per-minute", "0"]  # made for trying out, benchmarks included
    leave_s = max(
        settings.drain_delay_s + settings.grace_s,
        front_settings.drain_delay_s + front_settings.grace_s,
    )
    return asyncio.run(
        run_both(
            [*server_args, "--host", server.host, "--port", str(server.port)],
            front,
            server.reachable,
            gateway.reachable,
            leave_s=leave_s,
            on_ready=banner,
        )
    )


def _demo(args: argparse.Namespace) -> int:
    _require("server")
    from vdiff_grpc.server.app import Server

    flags = argparse.ArgumentParser()
    config.add_flags(flags)
    settings = config.from_flags(
        flags.parse_args(
            f"--model {config.DEMO} --aux-model {config.NONE} --port 0 --log-level warning".split()
        ),
        os.environ,
    )
    # It is nobody's but this command's: no keys and certificates of another server.
    settings = replace(
        settings, api_keys="", tls_cert="", tls_key="", tls_client_ca="", metrics_port=0
    )
    fields: SpecFields = {"max_new_tokens": args.max_new_tokens, "seed": args.seed}
    ask = Ask(args.prompt, fields, Given((args.prompt,)))
    args.plain = False
    args.timeout_s = None

    async def demo() -> None:
        print("Loading the embedded model ...", flush=True)
        server = Server(settings, engine="process")
        await server.start()
        try:
            await server.ready()
            async with AsyncClient(server.address) as client:
                await asking.show_ask(client, ask, args)
        finally:
            await server.stop()

    return asking.run_until_told(demo())


# --- flags ------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="Serves and calls diffusion language models over gRPC."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "serve a model over gRPC")
    config.add_flags(serve)

    run = _command(commands, "run", _run, "serve a model over gRPC and, with the gateway, HTTP")
    _add_addresses(run)
    config.add_flags(run)

    generate = _command(commands, "generate", asking.generate, "ask a server for text and print it")
    add_call_flags(generate)
    add_sampling_flags(generate)
    generate.add_argument("--json", action="store_true", help="print the whole reply as JSON")
    generate.add_argument(
        "--return-trajectory",
        action="store_true",
        default=None,
        help="with --json: tell every change of the canvas",
    )

    watch = _command(commands, "watch", asking.watch, "show the canvas while it fills in")
    add_call_flags(watch)
    add_sampling_flags(watch)
    _add_delay(watch, 0.0)
    watch.add_argument("--plain", action="store_true", help="plain lines on a terminal too")

    health.add_flags(
        _command(commands, "health", health.run, "ask a server whether it serves; 0: it does")
    )
    keys.add_flags(_command(commands, "keys", keys.run, "make and remove a server's API keys"))

    demo = _command(
        commands, "demo", _demo, "one completion of the embedded model, shown step by step"
    )
    demo.add_argument("prompt", nargs="?", default=DEMO_PROMPT, help=f"default: {DEMO_PROMPT!r}")
    demo.add_argument("--max-new-tokens", type=uint32, default=64, metavar="N", help="default: 64")
    demo.add_argument("--seed", type=uint64, default=0, metavar="N", help="default: 0")
    _add_delay(demo, DEMO_DELAY_S)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    purpose: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="where the server listens: --host and --port in one"
    )
    parser.add_argument(
        "--gateway-address",
        metavar="HOST:PORT",
        help="where the gateway listens (default 127.0.0.1:8000; VDIFF_GATEWAY_HOST, _PORT)",
    )


def _add_delay(parser: argparse.ArgumentParser, default: float) -> None:
    parser.add_argument(
        "--delay",
        dest="delay_s",
        type=float,
        default=default,
        metavar="SECONDS",
        help=f"show every step for at least so long (default {default:g}; none in a pipe)",
    )


# --- small things -----------------------------------------------------------


def _free(text: str | None, default: Address) -> Address:
    return free_address(default if text is None else parse_address(text))


def _banner(model: str, server: Address, gateway: Address) -> str:
    near = gateway.reachable
    return f"""
  {model} is served.

    gRPC     {server}
    OpenAI   http://{gateway}/v1
    docs     http://{near}/docs
    watch    http://{near}/playground

  Try
    {PROG} watch --address {server.reachable} "Once upon a time"
    curl http://{near}/v1/completions \\
      -H 'Content-Type: application/json' \\
      -d '{{"model": "{model}", "prompt": "Once upon a time"}}'

  Ctrl-C stops both.
"""


def _require(extra: str) -> None:
    missing = [name for name in _EXTRAS[extra] if util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{', '.join(missing)} not installed: pip install 'vdiff-grpc[{extra}]'")


def _told(error: ClientError) -> str:
    again = "" if error.retry_after_s is None else f" (try again in {error.retry_after_s:g} s)"
    code: grpc.StatusCode = error.code
    # A field deep inside is told by its path: which keyword of a schema, which hole.
    paths = [violation.field.removeprefix("spec.") for violation in error.violations]
    deep = [path for path in paths if path.count(".") > 1]
    where = f" at {', '.join(deep)}" if deep else ""
    return f"{error.message}{where}{again} [{error.reason or code.name}]"


def _unreachable(address: str, error: UnavailableError) -> str:
    """gRPC's own words, shortened: it lists every attempt on every address."""
    cause = error.message.rpartition(": ")[2][:80].strip("[]")
    if any(word in error.message for word in ("connect", "resolv", "DNS")):
        return (
            f"no server at {address} ({cause}); start one with `{PROG} serve` or `{PROG} run`, "
            "or name another with --address"
        )
    return f"lost the connection to {address} ({cause})"


def _fail(message: str) -> int:
    print(f"{PROG}: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 1


def _version() -> str:
    return f"{PROG} {metadata.version(PROG)}"
