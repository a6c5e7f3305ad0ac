"""What a child of `vdiff-grpc run` does: the server or the gateway, for as long as its parent lives.

Imports next to nothing at its top: the engine's process, spawned, imports it again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main(name: str, args: list[str]) -> int:
    """Runs `serve` ("server") or `vdiff-gateway` ("gateway"); standard input is the lifeline."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if name == "server":
        from vdiff_grpc.cli.main import main as server_main

        return server_main(args)
    from gateway.app import main as gateway_main

    return gateway_main(args)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
