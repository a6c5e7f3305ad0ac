"""The command line: `vdiff-grpc serve | run | demo | generate | watch`."""
