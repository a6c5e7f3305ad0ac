"""What the gateway counts about itself, and /metrics for Prometheus to read.

The server counts tokens and forward passes. No label has a value that a client may choose.
"""

from __future__ import annotations

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from vdiff_grpc import telemetry
from vdiff_grpc.meters import Meters


class GatewayMetrics:
    """One gateway's; `endpoint` answers GET /metrics."""

    def __init__(self) -> None:
        self.meters = Meters()
        self.meters.record(
            telemetry.HTTP_DURATION,
            telemetry.HTTP_ACTIVE,
            telemetry.FIRST_EVENT,
            telemetry.RATE_LIMITED,
            telemetry.UPSTREAM_RETRIES,
            telemetry.UPSTREAM_ERRORS,
        )
        self.meters.read(telemetry.GATEWAY_BUILD, lambda: {(version("vdiff-grpc"),): 1})

    def begun(self) -> None:
        self.meters.add(telemetry.HTTP_ACTIVE, 1)

    def ended(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        self.meters.add(telemetry.HTTP_ACTIVE, -1)
        about = (telemetry.http_method(method), route, str(status))
        self.meters.observe(telemetry.HTTP_DURATION, seconds, *about, exemplar=exemplar)

    def first_event(self, route: str, seconds: float) -> None:
        self.meters.observe(telemetry.FIRST_EVENT, seconds, route)

    def rate_limited(self) -> None:
        self.meters.add(telemetry.RATE_LIMITED, 1)

    def retried(self) -> None:
        self.meters.add(telemetry.UPSTREAM_RETRIES, 1)

    def upstream_failed(self, code: str) -> None:
        self.meters.add(telemetry.UPSTREAM_ERRORS, 1, code)

    async def endpoint(self, request: Request) -> Response:
        page, content_type = self.meters.page(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})
