"""The command line: `vdiff-grpc serve | run | demo | generate | watch | keys`."""

import os

# Read when grpc is imported. Below errors gRPC logs text of its peers as it came, line breaks
# included: anyone who can connect could write lines of our log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
