"""Servers and Envoy as processes of their own, on ports that stay the same over restarts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY
from vdiff_grpc.client import Client


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class ServerProcess:
    """`vdiff-grpc serve` with the tiny checkpoint; its log goes to a file."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / f"server-{self.port}.log"
        self._flags = (
            *("--model", str(TINY), "--port", str(self.port), "--device", "cpu", "--threads", "1"),
            *flags,
        )
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vdiff_grpc", "serve", *self._flags],
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        with Client(self.address) as client:
            client.wait_until_ready(90)

    def leave(self) -> int:
        """SIGTERM; gives the exit code once it has drained."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


ENVOY = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))

_ENVOY_CONFIG = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %(port)d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: grpc
          codec_type: AUTO
          stream_idle_timeout: 0s
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route:
                  cluster: servers
                  timeout: 0s
                  retry_policy:
                    retry_on: unavailable,refused-stream,connect-failure
                    num_retries: 3
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
  clusters:
  - name: servers
    type: STATIC
    connect_timeout: 2s
    lb_policy: ROUND_ROBIN
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    health_checks:
    - timeout: 2s
      interval: 0.3s
      no_traffic_interval: 0.3s
      unhealthy_threshold: 1
      healthy_threshold: 1
      grpc_health_check: {service_name: vdiff.v1.GenerationService}
    load_assignment:
      cluster_name: servers
      endpoints:
      - lb_endpoints:
%(endpoints)s
"""
_ENDPOINT = "        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}"


class Envoy:
    """In front of servers that it asks for their health, in round-robin."""

    def __init__(self, folder: Path, servers: list[ServerProcess]) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        endpoints = "\n".join(_ENDPOINT % server.port for server in servers)
        config = folder / "envoy.yaml"
        config.write_text(_ENVOY_CONFIG % {"port": port, "endpoints": endpoints})
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    ENVOY,
                    "-c",
                    str(config),
                    "--concurrency",
                    "1",
                    "--log-level",
                    "warning",
                    "--use-dynamic-base-id",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
