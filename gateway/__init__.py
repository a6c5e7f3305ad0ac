"""The REST gateway: OpenAI JSON over HTTP to vdiff.v1 over gRPC."""
