"""The server's certificates, read again when their files change. Knows nothing of requests.

gRPC asks at every new connection. What is open goes on under the certificate it began with; new
files that do not fit together leave the old ones in place, and are logged once.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from vdiff_grpc.errors import VdiffError

logger = logging.getLogger(__name__)

_Signature = tuple[tuple[int, ...], ...]


class TlsError(VdiffError):
    """Certificate files are missing, broken, or do not fit together; names the file."""

    reason = "TLS"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. client_ca: empty asks callers for no certificate."""

    cert: str
    key: str
    client_ca: str = ""

    def __post_init__(self) -> None:
        """Raises TlsError."""
        if not (self.cert and self.key):
            raise TlsError(
                "--tls-cert and --tls-key are needed together; --tls-client-ca with both"
            )


class Certificates:
    """The newest sound content of the files."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError."""
        self._files = files
        self._lock = threading.Lock()  # gRPC asks on threads of its own
        self._seen = self._signature()
        self._current = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """Keeps a reference to this object."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self.changed,  # type: ignore[arg-type]  # its stubs forget None
            require_client_authentication=bool(self._files.client_ca),
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new content, None where it is the old. From any thread; never raises."""
        with self._lock:
            # Taken before the files are read: a change meanwhile is then seen the next time.
            signature = self._signature()
            if signature == self._seen:
                return None
            self._seen = signature
            try:
                self._current = self._load()
            except TlsError as error:
                logger.error("the TLS certificate stays as it was: %s", error)
                return None
            logger.info("read the TLS certificate anew from %s", self._files.cert)
            return self._current

    def _load(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        chain, key = _read(files.cert), _read(files.key)
        _check_pair(files)
        if (chain, key) != (_read(files.cert), _read(files.key)):
            raise TlsError(f"{files.cert}, {files.key}: changed while they were read")
        client_ca = None
        if files.client_ca:
            client_ca = _read(files.client_ca)
            _check_ca(files.client_ca, client_ca)
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def _signature(self) -> _Signature:
        files = self._files
        paths = [path for path in (files.cert, files.key, files.client_ca) if path]
        return tuple(_signature_of(Path(path)) for path in paths)


def _signature_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: cannot be read: {error.strerror}") from None


def _check_pair(files: TlsFiles) -> None:
    """OpenSSL says more of what is wrong than gRPC, and before the old pair is gone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise TlsError(
            f"{files.cert}, {files.key}: not a certificate chain and its unencrypted private key, "
            f"in PEM: {_words(error)}"
        ) from None


def _check_ca(path: str, pem: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (OSError, ValueError) as error:
        raise TlsError(f"{path}: no certificates in PEM: {_words(error)}") from None


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
