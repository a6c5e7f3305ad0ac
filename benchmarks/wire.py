"""HTTP/1.1 over one kept connection, at as little cost as a socket allows.

Knows nothing of what is asked, and checks no more than it needs to find an answer's end.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Answer:
    """As it came: chunked bodies keep their frames."""

    status: int
    body: bytes


def request(path: str, body: bytes = b"") -> bytes:
    """GET without a body, POST of JSON with one."""
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nhost: localhost\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Connection:
    def __init__(self, address: tuple[str, int], timeout_s: float = 60.0) -> None:
        """Raises OSError."""
        self._socket = socket.create_connection(address, timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        """Raises OSError, also when the connection ends before the answer does."""
        self._socket.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive()
        head, body = data[:end].lower(), data[end + 4 :]
        parts = [body]
        _, found, length = head.partition(b"content-length:")
        if found:
            missing = int(length.partition(b"\r\n")[0]) - len(body)
            while missing > 0:
                parts.append(self._receive())
                missing -= len(parts[-1])
        else:
            last = body[-5:]
            while last != b"0\r\n\r\n":
                parts.append(self._receive())
                last = (last + parts[-1])[-5:]
        return Answer(int(head[9:12]), b"".join(parts))

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection has ended in an answer")
        return data
