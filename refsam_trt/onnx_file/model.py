"""The part of ONNX's file format that a bundle is checked for, as messages of the protobuf package.

Types, names and numbers are those of onnx.proto; what is left out stays unread. The messages live
in a pool of their own, so they never meet those of the onnx package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

# Fields that onnx.proto puts into a `oneof` are marked by its name in brackets. Other kinds of type
# than tensors are told apart from them and from each other, and not read any further. The location
# of data is an enumeration there, so any number but 0 must be taken for "external".
_SCHEMA = """
message ModelProto
    optional int64 ir_version = 1
    optional GraphProto graph = 7
    repeated OperatorSetIdProto opset_import = 8
    repeated TrainingInfoProto training_info = 20
    repeated FunctionProto functions = 25
message OperatorSetIdProto
    optional string domain = 1
    optional int64 version = 2
message TrainingInfoProto
    optional GraphProto initialization = 1
    optional GraphProto algorithm = 2
message FunctionProto
    repeated NodeProto node = 7
    repeated OperatorSetIdProto opset_import = 9
    optional string domain = 10
    repeated AttributeProto attribute_proto = 11
message GraphProto
    repeated NodeProto node = 1
    repeated TensorProto initializer = 5
    repeated ValueInfoProto input = 11
    repeated ValueInfoProto output = 12
    repeated SparseTensorProto sparse_initializer = 15
message NodeProto
    repeated string input = 1
    repeated string output = 2
    optional string op_type = 4
    repeated AttributeProto attribute = 5
    optional string domain = 7
message AttributeProto
    optional string name = 1
    optional int64 i = 3
    optional TensorProto t = 5
    optional GraphProto g = 6
    repeated TensorProto tensors = 10
    repeated GraphProto graphs = 11
    optional SparseTensorProto sparse_tensor = 22
    repeated SparseTensorProto sparse_tensors = 23
message TensorProto
    optional int32 data_type = 2
    optional string name = 8
    repeated StringStringEntryProto external_data = 13
    optional int32 data_location = 14
message SparseTensorProto
    optional TensorProto values = 1
    optional TensorProto indices = 2
message StringStringEntryProto
    optional string key = 1
    optional string value = 2
message ValueInfoProto
    optional string name = 1
    optional TypeProto type = 2
message TypeProto
    optional TensorType tensor_type = 1 [value]
    optional OtherType sequence_type = 4 [value]
    optional OtherType map_type = 5 [value]
    optional OtherType opaque_type = 7 [value]
    optional OtherType sparse_tensor_type = 8 [value]
    optional OtherType optional_type = 9 [value]
message OtherType
message TensorType
    optional int32 elem_type = 1
    optional TensorShapeProto shape = 2
message TensorShapeProto
    repeated Dimension dim = 1
message Dimension
    optional int64 dim_value = 1 [value]
    optional string dim_param = 2 [value]
"""
_PACKAGE = "refsam_trt.onnx"


class Unreadable(Exception):
    """The bytes are no model, or one that exceeds a limit; the text says what is wrong."""


def parse_model(raw: bytes) -> Any:
    """Return the ModelProto of an .onnx file.

    Raises:
        Unreadable: protobuf cannot read it; nor could what runs the file.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    try:
        return _model_class().FromString(raw)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error


@cache
def _model_class() -> Any:
    """Return the class of ModelProto; protobuf is imported here, at the first file that is read."""
    from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    # onnx.proto is proto2, which differs in one thing that matters: it lets text be no UTF-8.
    file = descriptor_pb2.FileDescriptorProto(
        name="refsam_trt_onnx.proto", package=_PACKAGE, syntax="proto3"
    )
    for line in _SCHEMA.strip().splitlines():
        words = line.split()
        if words[0] == "message":
            message = file.message_type.add(name=words[1])
        else:
            _add_field(message, *words)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))


def _add_field(
    message: Any, label: str, kind: str, name: str, _: str, number: str, oneof: str = ""
) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = getattr(field, f"LABEL_{label.upper()}")
    if kind.islower():
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    if oneof:
        if not message.oneof_decl:
            message.oneof_decl.add(name=oneof.strip("[]"))
        field.oneof_index = 0
