"""What the gateway shows its server and its clients: certificates, and an API key of its own.

Files are read again when they change, but for those of the connection to the server: gRPC reads
them once. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from pathlib import Path

import grpc

from .config import GatewayConfig

_log = logging.getLogger(__name__)

_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_CHECK_EVERY_S = 1.0


class CredentialError(ValueError):
    """A file with a certificate or key cannot be used; names the file, not what is in it."""


def upstream_credentials(config: GatewayConfig) -> grpc.ChannelCredentials | None:
    """For TLS to the server; None is none. Raises CredentialError."""
    if config.upstream_tls == "off" and not config.upstream_ca:
        return None
    ca, cert, key = (
        _read(path) if path else None
        for path in (config.upstream_ca, config.upstream_cert, config.upstream_cert_key)
    )
    if cert is not None:
        _check_pair(config.upstream_cert, config.upstream_cert_key)
    return grpc.ssl_channel_credentials(ca, key, cert)


class ServiceKey:
    """The gateway's own API key, which its server gets in place of the clients'."""

    def __init__(self, path: str) -> None:
        """Raises CredentialError."""
        self._path = path
        self._seen = _signature(path)
        self._key = self._load()
        self._next_check = time.monotonic() + _CHECK_EVERY_S

    def value(self) -> str:
        """The key, as the file had it a second ago or later."""
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + _CHECK_EVERY_S
            if (signature := _signature(self._path)) != self._seen:
                self._seen = signature
                try:
                    self._key = self._load()
                except CredentialError as error:
                    _log.error("the API key stays as it was: %s", error)
        return self._key

    def _load(self) -> str:
        text = _read(self._path).decode("ascii", "replace").strip()
        if not _KEY.fullmatch(text):
            raise CredentialError(
                f"{self._path}: must be one API key of 1 to 512 printable ASCII characters"
            )
        return text


class ServerCertificate:
    """What clients are shown over HTTPS. New connections see a new one within a second."""

    def __init__(self, cert: str, key: str) -> None:
        """Raises CredentialError."""
        self.cert, self.key = cert, key
        self._seen = self._signatures()
        _check_pair(cert, key)

    async def follow(self, context: ssl.SSLContext) -> None:
        """Keeps the context as new as the files, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            if (signatures := self._signatures()) == self._seen:
                continue
            self._seen = signatures
            try:
                _check_pair(self.cert, self.key)
                context.load_cert_chain(self.cert, self.key)
            except (CredentialError, OSError) as error:
                _log.error("the TLS certificate stays as it was: %s", error)
            else:
                _log.info("read the TLS certificate anew from %s", self.cert)

    def _signatures(self) -> tuple[tuple[int, ...], ...]:
        return _signature(self.cert), _signature(self.key)


def _signature(path: str) -> tuple[int, ...]:
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from None


def _check_pair(cert: str, key: str) -> None:
    _read(cert)
    _read(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        words = getattr(error, "reason", None) or error
        raise CredentialError(
            f"{cert}, {key}: not a certificate chain and its unencrypted private key, in PEM: "
            f"{words}"
        ) from None
