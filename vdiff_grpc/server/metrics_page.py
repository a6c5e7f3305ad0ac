"""Answers GET /metrics for Prometheus, on a port of its own. Knows nothing of what is measured.

No TLS and no keys: for a network of the cluster's own. A peer that stalls loses its connection, and
there is a limit to how many there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 16
_TIMEOUT_S = 10.0

# For an Accept header, the page and its content type.
Page = Callable[[str], tuple[bytes, str]]


class MetricsPage:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens, and gives the port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._connected, host, port, limit=_MAX_HEAD_BYTES, reuse_port=False
        )
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:  # stopping: asyncio would log what ends a connection's task
            pass
        finally:
            self._open.discard(task)
            with contextlib.suppress(OSError):
                writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            return _response("404 Not Found", b"it is /metrics\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"", "allow: GET, HEAD")
        headers = dict(_header(line) for line in lines if ":" in line)
        body, kind = self._page(headers.get("accept", ""))
        answer = _response("200 OK", body, kind=kind)
        return answer if method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _response(status: str, body: bytes, *headers: str, kind: str = "text/plain") -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    )
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
