"""The REST gateway: OpenAI JSON over HTTP to vdiff.v1 over gRPC."""

import os

# Read when grpc is imported. Below errors gRPC logs text of its peers as it came.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
