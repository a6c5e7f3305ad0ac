"""Serves the playground: one page and the files it is made of. Knows nothing of what they do."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    # What the page loads and whom it talks to: the gateway alone, whatever a text says.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # The parts belong together: none may be of an older version.
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    return _html


def _answer(path: Path, media_type: str) -> Response:
    return Response(path.read_bytes(), media_type=media_type, headers=_HEADERS)


def _route(url: str, path: Path) -> Route:
    answer = _answer(path, _MEDIA_TYPES[path.suffix])

    async def file(request: Request) -> Response:
        return answer

    return Route(url, file)


_html = _answer(_STATIC / "playground.html", "text/html")
_PARTS = _STATIC / "playground"
FILES = [
    *(_route(f"/playground/{path.name}", path) for path in sorted(_PARTS.iterdir())),
    # What browsers ask for of themselves, on the other pages.
    _route("/favicon.ico", _PARTS / "icon.svg"),
]
