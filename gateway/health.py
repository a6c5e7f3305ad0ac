"""`python -m gateway.health`: whether the gateway on this machine lives; for container health checks.

Asks the port that the environment names, by HTTPS where there is a certificate. Knows no routes.
"""

from __future__ import annotations

import ssl
import sys
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from .config import load_config

_TIMEOUT_S = 4


def main() -> int:
    """0: it answers; 1: it does not, with one line that says why."""
    config = load_config([])
    if config.tls_cert:
        # Its own certificate, which need not name this address; nothing secret is sent.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(
            "127.0.0.1", config.port, timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = HTTPConnection("127.0.0.1", config.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health/live")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        print(f"port {config.port}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != HTTPStatus.OK:
        print(f"port {config.port}: HTTP {status}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
