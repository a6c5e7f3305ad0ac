"""Runs server and gateway as two child processes, together or not at all.

Each child has a session of its own, so that a terminal's Ctrl-C reaches it only through here,
and a standard input that stays open as long as this process lives: a child that reads its end
stops by itself (`child.py`). So nothing is left running, however this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vdiff_grpc.client import AsyncClient, ClientError, TimedOutError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
_WATCH_S = 60.0
# On top of the time for open calls: to notice, and to leave.
_MARGIN_S = 10.0


class AddressError(ValueError):
    """An address that cannot be read, or listened on; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> Address:
        """The address for a caller on this machine, where the host means every interface."""
        local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        return Address(local.get(self.host, self.host), self.port)


def parse_address(text: str) -> Address:
    """Reads HOST:PORT or [IPv6]:PORT."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdecimal():
        raise AddressError(f"{text!r} is not HOST:PORT")
    if int(port) > 65535:
        raise AddressError(f"{text!r}: the port must be at most 65535")
    return Address(host, int(port))


def free_address(address: Address) -> Address:
    """The address with its port, any free one in place of 0. AddressError when it is taken."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            # Past connections in TIME_WAIT are no hindrance; a listener still is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            return Address(address.host, probe.getsockname()[1])
    except OSError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror or error}") from None


async def run(
    server_args: Sequence[str],
    gateway_args: Sequence[str],
    server: Address,
    gateway: Address,
    *,
    leave_s: float,
    on_ready: Callable[[], None],
) -> int:
    """Runs both until a signal comes (0) or one of them ends by itself (1).

    server_args, gateway_args: the flags of `serve` and `vdiff-gateway`; server, gateway: where
    they can be reached. leave_s: how long they may need for open calls; a second signal
    ends both at once.
    """
    stop = asyncio.Event()
    children: list[_Child] = []

    def on_signal() -> None:
        if stop.is_set():
            for child in children:
                child.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        children.append(await _Child.start("server", ["serve", *server_args]))
        children.append(await _Child.start("gateway", gateway_args))
        died = await _watch(children, stop, server, gateway, on_ready)
    finally:
        unclean = await _stop(children, leave_s + _MARGIN_S)
    for child in died:
        _say(f"the {child.name} ended by itself (exit status {child.returncode})")
    for child in unclean:
        _say(f"the {child.name} did not stop cleanly (exit status {child.returncode})")
    return 1 if died or unclean else 0


class _Child:
    """One child process, in a session of its own."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self.ended = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, name: str, args: Sequence[str]) -> _Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "vdiff_grpc.cli.child", name),
            *args,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(name, process)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Ends the child and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


async def _watch(
    children: Sequence[_Child],
    stop: asyncio.Event,
    server: Address,
    gateway: Address,
    on_ready: Callable[[], None],
) -> list[_Child]:
    """Returns when a signal came, or with the children that ended by themselves."""
    stopping = asyncio.create_task(stop.wait())
    ready = asyncio.create_task(_wait_until_ready(server, gateway))
    ends = {child.ended for child in children}
    try:
        await asyncio.wait({stopping, ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stopping.done() and not any(end.done() for end in ends):
            ready.result()
            on_ready()
            await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
        return [] if stop.is_set() else [child for child in children if child.ended.done()]
    finally:
        stopping.cancel()
        ready.cancel()
        await asyncio.gather(stopping, ready, return_exceptions=True)


async def _wait_until_ready(server: Address, gateway: Address) -> None:
    # A load may take as long as it takes: the server's end is what ends the wait.
    async with AsyncClient(str(server)) as client:
        while True:
            try:
                await client.wait_until_ready(_WATCH_S)
                break
            except TimedOutError:
                continue
            except ClientError:
                await asyncio.sleep(_POLL_S)
    while True:
        if await _is_healthy(gateway):
            return
        await asyncio.sleep(_POLL_S)


async def _is_healthy(gateway: Address) -> bool:
    try:
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
    except OSError:
        return False
    try:
        head = f"GET /health HTTP/1.1\r\nHost: {gateway}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        return b" 200 " in await asyncio.wait_for(reader.readline(), 5)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _stop(children: Sequence[_Child], timeout_s: float) -> list[_Child]:
    """Ends all children; returns those that failed while they were being stopped."""
    running = [child for child in children if not child.ended.done()]
    for child in running:
        child.terminate()
    ends = [child.ended for child in running]
    if ends:
        await asyncio.wait(ends, timeout=timeout_s)
    for child in children:
        # Also after a child's own end: nothing that it started may outlive it.
        child.kill()
    await asyncio.gather(*ends)
    # A child that was still starting up has no handler yet.
    return [child for child in running if child.returncode not in (0, -signal.SIGTERM)]


def _say(text: str) -> None:
    print(f"vdiff-grpc: {text}", file=sys.stderr, flush=True)
