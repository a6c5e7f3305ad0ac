"""Asks a server three times: for an answer, for a stream, and for what it must refuse."""

import os
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from vdiff_grpc import v1


def spec(max_new_tokens: int) -> v1.GenerationSpec:
    """What is left out has the server's default; an explicit 0 is 0."""
    return v1.GenerationSpec(
        text="Once upon a time",
        sampling=v1.SamplingParams(max_new_tokens=max_new_tokens, seed=7),
        diffusion=v1.DiffusionParams(confidence_threshold=v1.ConfidenceThreshold(threshold=0.95)),
    )


key = os.environ.get("VDIFF_API_KEY")
metadata = [("authorization", f"Bearer {key}")] if key else []

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = v1.GenerationServiceStub(channel)

    reply = stub.Generate(v1.GenerateRequest(spec=spec(24)), timeout=60, metadata=metadata)
    print(reply.outputs[0].text)

    request = v1.StreamGenerateRequest(spec=spec(24))
    for event in stub.StreamGenerate(request, timeout=60, metadata=metadata):
        print(event.committed.text, end="", flush=True)  # "" in other events
    print()

    try:
        stub.Generate(v1.GenerateRequest(spec=spec(1000000)), timeout=60, metadata=metadata)
    except grpc.RpcError as error:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in rpc_status.from_call(error).details:
            detail.Unpack(info) or detail.Unpack(bad)
        print(error.code().name, info.reason)
        print(bad.field_violations[0].field)
