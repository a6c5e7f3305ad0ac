"""Our vllm_engine.proto against the one that routers are built with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from vdiff_grpc import vllm

# In a process of its own: one process cannot hold two definitions of a name.
_DUMP = """
import sys
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from smg_grpc_proto import vllm_engine_pb2
from smg_grpc_proto.generated import common_pb2
files = FileDescriptorSet()
for module in (vllm_engine_pb2, common_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
"""

# What callers say to us: here nothing may be left out, or it would be refused by number only.
REQUESTS = (
    *("GenerateRequest", "SamplingParams", "TokenizedInput", "AbortRequest", "HealthCheckRequest"),
    *("GetModelInfoRequest", "GetServerInfoRequest", "GetLoadsRequest", "GetTokenizerRequest"),
)


@pytest.fixture(scope="module")
def theirs() -> tuple[dict[str, DescriptorProto], FileDescriptorProto]:
    """Their messages by name, and the file of the service."""
    done = subprocess.run([sys.executable, "-c", _DUMP], capture_output=True, check=True)
    files = FileDescriptorSet.FromString(done.stdout).file
    return {m.name: m for file in files for m in file.message_type}, files[0]


def ours() -> FileDescriptorProto:
    file = FileDescriptorProto()
    vllm.vllm_engine_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def shape(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    """All that is on the wire, or decides what it means. A message there is bytes."""
    kind, type_name = field.type, field.type_name.rpartition(".")[2]
    if kind == FieldDescriptorProto.TYPE_MESSAGE and type_name not in names():
        kind, type_name = FieldDescriptorProto.TYPE_BYTES, ""
    group, is_single = "", field.label != FieldDescriptorProto.LABEL_REPEATED
    if field.HasField("oneof_index") and not field.proto3_optional:
        group = message.oneof_decl[field.oneof_index].name
    is_message = field.type == FieldDescriptorProto.TYPE_MESSAGE
    presence = bool(group or field.proto3_optional or (is_message and is_single))
    return field.number, field.label, kind, type_name, group, presence


def names() -> set[str]:
    return {m.name for m in ours().message_type} | {"LogitBiasEntry"}


@pytest.mark.parametrize("message", ours().message_type, ids=lambda m: m.name)
def test_a_field_of_ours_is_the_same_there(
    message: DescriptorProto, theirs: tuple[dict[str, DescriptorProto], FileDescriptorProto]
) -> None:
    there = theirs[0][message.name]
    known = {field.name: shape(there, field) for field in there.field}
    own = {field.name: shape(message, field) for field in message.field}
    assert own.items() <= known.items()
    if message.name in REQUESTS:
        assert own.keys() == known.keys()


def test_a_call_of_ours_is_the_same_there(
    theirs: tuple[dict[str, DescriptorProto], FileDescriptorProto],
) -> None:
    file, (there,), (here,) = theirs[1], theirs[1].service, ours().service
    assert (file.package, there.name) == (ours().package, here.name)
    known, own = ({signature(m) for m in service.method} for service in (there, here))
    assert own < known
    left_out = {call[0] for call in known - own}
    assert left_out == {"Embed", "FlushCache", "StartProfile", "StopProfile", "SubscribeKvEvents"}


def signature(method: MethodDescriptorProto) -> tuple[object, ...]:
    types = [name.rpartition(".")[2] for name in (method.input_type, method.output_type)]
    return method.name, *types, method.client_streaming, method.server_streaming
