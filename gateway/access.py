"""Who may call, and how often: API keys and the rate limit, as pure ASGI middleware.

Decided from the headers alone, for /v1 only: health, metrics and the pages are open. Keys never
enter the log, nor a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vdiff_grpc.keys import GENERATE, KeyEntry, KeyFileError, KeyRing

from .errors import ApiError
from .middleware import send_error
from .rate_limit import RateLimits, Standing, network_of

_GUARDED = "/v1/"
_BEARER = re.compile(rb"(?i:bearer) +([\x21-\x7e]{1,512})")


class AccessControl:
    """ring: None lets everybody in. requests_per_minute: of a caller whose key says nothing
    else; 0 is no limit."""

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing | None,
        requests_per_minute: int,
        on_limited: Callable[[], None],
    ) -> None:
        self._app = app
        self._ring = ring
        self._limit = requests_per_minute
        self._on_limited = on_limited
        self._limits = RateLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_GUARDED):
            await self._app(scope, receive, send)
            return
        entry, refusal = self._caller(scope)
        if entry is None:
            caller, limit = "address " + network_of(_address(scope)), self._limit
        else:
            scope["vdiff.caller"] = entry.name
            caller, limit = "key " + entry.name, entry.requests_per_minute or self._limit
        if limit:
            standing = self._limits.take(caller, limit)
            if not standing.admitted:
                refusal = _too_many(standing)
                self._on_limited()
            send = _with_headers(send, _headers(standing))
        if refusal is not None:
            await send_error(refusal, send)
            return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> tuple[KeyEntry | None, ApiError | None]:
        """Whose key the request has, and why it is refused all the same."""
        if self._ring is None:
            return None, None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            return None, _unauthenticated(
                "the request has no API key; send `authorization: Bearer KEY`"
            )
        entry = self._ring.find(match[1].decode())
        if entry is None:
            return None, _unauthenticated("the API key is not valid here")
        if scope["method"] == "POST" and GENERATE not in entry.rights:
            return entry, ApiError(
                403,
                f"the key {entry.name} has no right to {GENERATE}",
                kind="permission_error",
                code="permission_denied",
            )
        return entry, None


def key_ring(path: str) -> KeyRing:
    """The gateway's own keys, in the server's format. Raises KeyFileError."""
    return KeyRing(path, check=_check)


def _check(entry: KeyEntry) -> None:
    if entry.tokens_per_minute is not None:
        raise KeyFileError(
            f"tokens_per_minute of {entry.name!r} is for the server's key file: the gateway counts "
            "no tokens"
        )
    if entry.latency_budget_s is not None:
        raise KeyFileError(
            f"latency_budget_s of {entry.name!r} is for the server's key file: the gateway hurries "
            "nothing"
        )
    if entry.min_priority is not None:
        raise KeyFileError(
            f"min_priority of {entry.name!r} is for the server's key file: the gateway has no queue"
        )


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _unauthenticated(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _too_many(standing: Standing) -> ApiError:
    return ApiError(
        429,
        f"more than {standing.limit} requests in a minute; the next one has room in "
        f"{standing.retry_after_s:.1f} s",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(math.ceil(standing.retry_after_s), 1))},
    )


def _headers(standing: Standing) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % standing.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % standing.remaining),
        (b"x-ratelimit-reset-requests", b"%.3fs" % standing.reset_s),
    ]


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_with_headers
