"""The gateway's settings: flags and environment, read once. Knows nothing of HTTP or gRPC."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from vdiff_grpc.channels import target_of

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
ENV_PREFIX = "VDIFF_GATEWAY_"


def _setting(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Every field is a flag and an environment variable: `--request-timeout-s` is also
    VDIFF_GATEWAY_REQUEST_TIMEOUT_S. The flag wins."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    server: str = _setting(
        "127.0.0.1:50051",
        "the gRPC server, HOST:PORT; several, comma-separated, or dns:///NAME:PORT, take turns while "
        "their health says they serve",
    )
    upstream_tls: str = _setting(
        "off", "TLS to the server, trusting the well-known authorities", ("on", "off")
    )
    upstream_ca: str = _setting("", "CA certificates, PEM: TLS to the server, trusting only these")
    upstream_cert: str = _setting("", "the gateway's own certificate chain, PEM, for the server")
    upstream_cert_key: str = _setting("", "its private key, PEM, unencrypted")
    upstream_name: str = _setting("", "the server's name in its certificate, if not its address")
    upstream_api_key_file: str = _setting(
        "",
        "file with the gateway's own API key, sent in place of the clients' keys: whoever reaches "
        "the gateway then has its rights",
    )
    retry_attempts: int = _setting(
        3, "calls to the server per request, while they end UNAVAILABLE; 1: no retries"
    )
    api_keys: str = _setting(
        "", "file of the API keys that clients must show, as `vdiff-grpc keys` makes it"
    )
    requests_per_minute: int = _setting(
        100,
        "requests of one API key or client address in any 60 s, where a key says nothing else; "
        "0: no limit",
    )
    trusted_proxies: str = _setting(
        "",
        "addresses or networks, comma-separated, whose X-Forwarded-For names the client; * trusts "
        "all",
    )
    cors_origins: str = _setting(
        "",
        "origins, comma-separated, whose pages may call from a browser, like https://a.example; * "
        "allows all",
    )
    tls_cert: str = _setting("", "certificate chain, PEM, for HTTPS; read again when it changes")
    tls_key: str = _setting("", "its private key, PEM, unencrypted")
    max_body_bytes: int = _setting(4 * 1024 * 1024, "largest request body, in bytes")
    request_timeout_s: float = _setting(
        600.0, "a request is ended with 504 after this long, waiting included; 0: never"
    )
    drain_delay_s: float = _setting(
        0.0, "after SIGTERM: say 'not ready' for this long before new connections are refused"
    )
    grace_s: float = _setting(30.0, "after SIGTERM: open requests have this long to finish")
    log_format: str = _setting("text", "text or json", ("text", "json"))
    log_level: str = _setting(
        "info", "debug, info, warning or error", ("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", self.port, "from 0 to 65535")
        _require(bool(self.server), "server", self.server, "HOST:PORT")
        _require(self.max_body_bytes >= 1, "max_body_bytes", self.max_body_bytes, "at least 1")
        try:
            target_of(self.server)
        except ValueError as error:
            raise ValueError(str(error).replace("address", "server", 1)) from None
        _require(1 <= self.retry_attempts <= 10, "retry_attempts", self.retry_attempts, "1 to 10")
        limit = self.requests_per_minute
        _require(0 <= limit <= 10**6, "requests_per_minute", limit, "from 0 to 1000000")
        for proxy in split(self.trusted_proxies):
            _require(_is_network(proxy), "trusted_proxies", proxy, "an address, a network or *")
        for origin in split(self.cors_origins):
            valid = origin == "*" or _ORIGIN.fullmatch(origin) is not None
            _require(valid, "cors_origins", origin, "SCHEME://HOST[:PORT] or *")
        for one, other in (("tls_cert", "tls_key"), ("upstream_cert", "upstream_cert_key")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise ValueError(f"{one} and {other} are needed together")
        for name in ("request_timeout_s", "drain_delay_s", "grace_s"):
            value = getattr(self, name)
            _require(0 <= value < 1e6, name, value, "from 0 to 1000000")


def load_config(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> GatewayConfig:
    """Read flags, then the environment, then the defaults. A wrong value ends the process
    with a message that names it."""
    environ = os.environ if environ is None else environ
    types = get_type_hints(GatewayConfig)
    parser = argparse.ArgumentParser(
        prog="vdiff-gateway",
        description="OpenAI's REST API in front of a vdiff-grpc server.",
        epilog=f"Each flag can be set in the environment: --log-level is {ENV_PREFIX}LOG_LEVEL.",
        allow_abbrev=False,
    )
    for setting in fields(GatewayConfig):
        assert setting.default is not MISSING
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            type=types[setting.name],
            # A string default goes through `type` and `choices` like a flag.
            default=environ.get(ENV_PREFIX + setting.name.upper()) or str(setting.default),
            choices=setting.metadata["choices"] or None,
            metavar=None if setting.metadata["choices"] else types[setting.name].__name__.upper(),
            help=setting.metadata["help"]
            + ("" if setting.default == "" else f" (default {setting.default})"),
        )
    values = vars(parser.parse_args(argv))
    for setting in fields(GatewayConfig):
        choices = setting.metadata["choices"]
        if choices and values[setting.name] not in choices:  # argparse does not check defaults
            parser.error(f"{setting.name} ({values[setting.name]}) is not one of {choices}")
    try:
        return GatewayConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def split(text: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_network(text: str) -> bool:
    try:
        return text == "*" or bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} ({value}) must be {expected}")
