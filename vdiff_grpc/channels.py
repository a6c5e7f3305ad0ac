"""What a channel to one or several servers is made with: its target, its retries, its balancing.

For the client and the gateway alike. Knows neither calls nor keys, and loads no gRPC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# What health calls the service when the model is ready.
READY_SERVICE = "vdiff.v1.GenerationService"

Address: TypeAlias = str | Sequence[str]

_SERVICES = (READY_SERVICE, "vdiff.v1.ModelService")
# gRPC makes no more attempts than this, whatever a service config says.
MAX_ATTEMPTS = 5
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d+")
_IPV6 = re.compile(r"\[[0-9a-fA-F:.%]+\]:\d+")


@dataclass(frozen=True, slots=True)
class Retries:
    """Of calls that end UNAVAILABLE. Each wait is random, around its length.

    attempts: the first call included; 1 to 5, 1 for no retries.
    """

    attempts: int = MAX_ATTEMPTS
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts ({self.attempts}) must be from 1 to {MAX_ATTEMPTS}")
        for name in ("first_wait_s", "longest_wait_s", "multiplier"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} ({value}) must be above 0 and finite")


def target_of(address: Address) -> str:
    """gRPC's name for one address, or for several, which must be IPv4 or all IPv6 ones."""
    if isinstance(address, str):
        if "," in address and ":" in address and not address.startswith(("ipv4:", "ipv6:")):
            return target_of(address.split(","))
        return address
    addresses = list(address)
    if not addresses:
        raise ValueError("address () must have at least one server")
    if len(addresses) == 1:
        return addresses[0]
    for scheme, pattern in (("ipv4", _IPV4), ("ipv6", _IPV6)):
        if all(pattern.fullmatch(one) for one in addresses):
            return f"{scheme}:{','.join(addresses)}"
    raise ValueError(
        f"address ({', '.join(addresses)}): several servers must all be IPv4:PORT or all "
        "[IPv6]:PORT; for a name that stands for several use dns:///NAME:PORT"
    )


def is_balanced(target: str) -> bool:
    """Whether a target stands for several servers: several addresses, or a name to look up."""
    return "," in target or target.startswith("dns:")


def common_host(target: str) -> str | None:
    """The one host of a target of several addresses, which gRPC itself would take all for one
    name; None when they have more than one.
    """
    hosts = hosts_of(target)
    return hosts.pop() if len(hosts) == 1 else None


def hosts_of(target: str) -> set[str]:
    """The hosts of a target of one or several addresses."""
    _, _, addresses = target.partition(":")
    return {address.rpartition(":")[0].strip("[]") for address in addresses.split(",")}


def service_config(*, retries: Retries | None, balanced: bool) -> dict[str, Any]:
    """gRPC's service config: retries, and with `balanced` round_robin over healthy servers."""
    config: dict[str, Any] = {}
    if retries is not None and retries.attempts > 1:
        policy = {
            "maxAttempts": retries.attempts,
            "initialBackoff": f"{retries.first_wait_s:.3f}s",
            "maxBackoff": f"{retries.longest_wait_s:.3f}s",
            "backoffMultiplier": retries.multiplier,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        names = [{"service": service} for service in _SERVICES]
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
    if balanced:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": READY_SERVICE}
    return config
