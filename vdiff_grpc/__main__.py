"""`python -m vdiff_grpc` is `vdiff-grpc`."""

import sys

from vdiff_grpc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
