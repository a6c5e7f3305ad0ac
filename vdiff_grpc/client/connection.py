"""How a client reaches its servers: addresses, keys, deadlines, retries. Knows no RPC.

Retries are gRPC's own, by service config: only UNAVAILABLE, at most five attempts, never after
the first message of a stream. RESOURCE_EXHAUSTED is not retried here: a full queue stays full
when everybody asks again, so the exception says when to come back and the caller decides.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import grpc

from vdiff_grpc import v1
from vdiff_grpc.channels import (
    Address,
    Retries,
    common_host,
    hosts_of,
    is_balanced,
    service_config,
    target_of,
)

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 600.0
# Above gRPC's 4 MiB: snapshots and long answers with their columns are larger.
_MAX_RECEIVE_BYTES = 64 << 20
_KEEPALIVE_TIMEOUT_S = 10.0
# A server may start again at the same address: look for it more often than gRPC's 120 s.
_MAX_RECONNECT_S = 5.0
_KEY = re.compile(r"[\x21-\x7e]+")


class ConnectionFields(TypedDict, total=False):
    """Keyword arguments of both clients."""

    # For TLS and mTLS; without them the connection is in the clear, the key too.
    credentials: grpc.ChannelCredentials | None
    # The name that the servers' certificate must have. Default: the address's own; several
    # addresses of different hosts need one, as gRPC has no name for them together.
    server_name: str | None
    # Sent with every call as "authorization: Bearer ...".
    api_key: str | None
    # Sent with every call, such as ("x-tenant", "a").
    metadata: Sequence[tuple[str, str]]
    # Deadline of every call that gives none of its own; math.inf for none. Default 600 s.
    timeout_s: float
    # None for no retries.
    retries: Retries | None
    # round_robin over every address whose health says SERVING. Default: with several addresses,
    # and with a dns:/// name. A server that is loading or draining then gets no call at all,
    # GetModelInfo included.
    balanced: bool | None
    # A call waits for a server until its deadline, where it would else end UNAVAILABLE.
    wait_for_ready: bool
    # A ping on a connection with open calls that is silent for so long; servers end
    # connections that ping more often than every 10 s. 0: none. Default 30 s.
    keepalive_s: float
    # More of gRPC's channel options; they win over ours.
    options: Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Connection:
    """What a channel and its calls are made with."""

    target: str
    options: tuple[tuple[str, Any], ...]
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]
    timeout_s: float
    wait_for_ready: bool
    retried: bool

    def call_arguments(self, timeout_s: float | None) -> dict[str, Any]:
        """What gRPC is given with a call. timeout_s: the call's own; None for the client's."""
        chosen = self.timeout_s if timeout_s is None else timeout_s
        return {
            "timeout": None if chosen == math.inf else chosen,
            "metadata": self.metadata,
            # Not False: gRPC would then overrule a service config's waitForReady.
            "wait_for_ready": self.wait_for_ready or None,
        }

    def named(self, spec: v1.GenerationSpec) -> v1.GenerationSpec:
        """Gives a request without an id one: a retry then joins the work of its first attempt."""
        if self.retried and not spec.request_id:
            spec.request_id = uuid.uuid4().hex
        return spec


def connection(
    address: Address,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str | None = None,
    api_key: str | None = None,
    metadata: Sequence[tuple[str, str]] = (),
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retries: Retries | None = Retries(),
    balanced: bool | None = None,
    wait_for_ready: bool = False,
    keepalive_s: float = 30.0,
    options: Sequence[tuple[str, Any]] = (),
) -> Connection:
    """ValueError for addresses, keys and times that cannot be."""
    if not timeout_s > 0:
        raise ValueError(f"timeout_s ({timeout_s}) must be above 0")
    if not 0 <= keepalive_s < math.inf:
        raise ValueError(f"keepalive_s ({keepalive_s}) must be at least 0 and finite")
    target = target_of(address)
    if balanced is None:
        balanced = is_balanced(target)
    config = service_config(retries=retries, balanced=balanced)
    ours: dict[str, Any] = {
        "grpc.max_receive_message_length": _MAX_RECEIVE_BYTES,
        "grpc.max_reconnect_backoff_ms": round(_MAX_RECONNECT_S * 1e3),
        "grpc.service_config": json.dumps(config),
        # A name's TXT record must not change what this client was told.
        "grpc.service_config_disable_resolution": 1,
    }
    if server_name is None and "," in target:
        server_name = common_host(target)
        if server_name is None and credentials is not None:
            names = ", ".join(sorted(hosts_of(target)))
            raise ValueError(f"server_name (None) is required for TLS to several hosts ({names})")
    if server_name is not None:
        ours["grpc.default_authority"] = server_name
        if credentials is not None:
            ours["grpc.ssl_target_name_override"] = server_name
    if keepalive_s:
        ours["grpc.keepalive_time_ms"] = round(keepalive_s * 1e3)
        ours["grpc.keepalive_timeout_ms"] = round(_KEEPALIVE_TIMEOUT_S * 1e3)
        # gRPC stops after two pings without data; a long unary call has no more to send.
        ours["grpc.http2.max_pings_without_data"] = 0
    return Connection(
        target=target,
        options=tuple((ours | dict(options)).items()),
        credentials=credentials,
        metadata=(*metadata, *_key_metadata(api_key)),
        timeout_s=timeout_s,
        wait_for_ready=wait_for_ready,
        retried=retries is not None and retries.attempts > 1,
    )


def _key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    if api_key is None:
        return ()
    if _KEY.fullmatch(api_key) is None:  # not quoted: it may be a key with a typing mistake
        raise ValueError("api_key must be printable ASCII characters without spaces")
    return (("authorization", f"Bearer {api_key}"),)
