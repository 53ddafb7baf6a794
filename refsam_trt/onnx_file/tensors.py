"""The tensors an .onnx file tells of: those at the graph's border, those in external data."""

from __future__ import annotations

from dataclasses import dataclass

from refsam_trt import limits
from refsam_trt.onnx_file.wire import Span, WireError, WireReader

_EXTERNAL = 1
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
}


Dims = tuple[int | str | None, ...]
"""A size, a symbol, or None where nothing is said, per dim."""


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph. A dim is a size, a symbol, or None where nothing is said.

    `dtype` is numpy's name (or bfloat16, float8_e4m3fn), `type <n>` for a number that has none
    here, and empty for what is no tensor. `dims` is None where the file gives no shape.
    """

    name: str
    dtype: str
    dims: Dims | None


@dataclass(frozen=True)
class ExternalData:
    """Where the bytes of one tensor lie: `location` is relative to the folder of the .onnx file.

    Offset and length are in bytes; a length of None means that the file gives none.
    """

    location: str
    offset: int
    length: int | None


def read_border_tensor(wire: WireReader, span: Span) -> OnnxTensor:
    """Read a ValueInfoProto."""
    name = ""
    for field in wire.fields(span):
        if field.number == 1:
            name = wire.text(field)
    type_span = _only(wire, span, 2)
    tensor_span = _only(wire, type_span, 1) if type_span else None
    if tensor_span is None:
        return OnnxTensor(name, "", None)
    elem_type = 0
    for field in wire.fields(tensor_span):
        if field.number == 1:
            elem_type = wire.integer(field)
    shape_span = _only(wire, tensor_span, 2)
    dims = None if shape_span is None else _dims(wire, shape_span)
    return OnnxTensor(name, dtype_name(elem_type), dims)


def dtype_name(elem_type: int) -> str:
    """Return the name of an element type (see `OnnxTensor`)."""
    return _DTYPES.get(elem_type, f"type {elem_type}")


def read_name_and_dtype(wire: WireReader, span: Span) -> tuple[str, str]:
    """Read name and element type of a TensorProto; of fields that come twice the last counts."""
    name, elem_type = "", 0
    for field in wire.fields(span):
        match field.number:
            case 2:
                elem_type = wire.integer(field)
            case 8:
                name = wire.text(field)
    return name, dtype_name(elem_type)


def read_dims(wire: WireReader, span: Span) -> tuple[int, ...]:
    """Read the sizes of a TensorProto."""
    dims: list[int] = []
    for field in wire.fields(span):
        if field.number == 1:
            dims += wire.integers(field)
            if len(dims) > limits.MAX_ONNX_DIMS:
                raise WireError(f"a tensor of more than {limits.MAX_ONNX_DIMS} dims")
    return tuple(dims)


def read_external_data(wire: WireReader, span: Span) -> ExternalData | None:
    """Read where a TensorProto's bytes lie, or None for a tensor that holds them itself."""
    entries: dict[str, str] = {}
    is_external = False
    for field in wire.fields(span):
        match field.number:
            case 13:
                key, value = _pair(wire, wire.message(field))
                if entries.setdefault(key, value) != value:
                    raise WireError(f"external data gives {key!r} twice")
            case 14:
                is_external = is_external or wire.integer(field) == _EXTERNAL
    if not is_external and not entries:
        return None
    if "location" not in entries:
        raise WireError("external data without a location")
    length = _size("length", entries["length"]) if "length" in entries else None
    return ExternalData(entries["location"], _size("offset", entries.get("offset", "0")), length)


def _only(wire: WireReader, span: Span, number: int) -> Span | None:
    found = [wire.message(field) for field in wire.fields(span) if field.number == number]
    if len(found) > 1:
        raise WireError(f"field {number} at byte {found[1].start} comes twice")
    return found[0] if found else None


def _dims(wire: WireReader, span: Span) -> Dims:
    dims: list[int | str | None] = []
    for dim in wire.fields(span):
        if dim.number != 1:
            continue
        value: int | str | None = None
        for field in wire.fields(wire.message(dim)):
            match field.number:
                case 1:
                    value = wire.integer(field)
                case 2:
                    value = wire.text(field) or None
                    if value is not None and len(value) > limits.MAX_ONNX_DIM_LENGTH:
                        raise WireError(f"a dim of {len(value)} characters")
        dims.append(value)
        if len(dims) > limits.MAX_ONNX_DIMS:
            raise WireError(f"a tensor of more than {limits.MAX_ONNX_DIMS} dims")
    return tuple(dims)


def _pair(wire: WireReader, span: Span) -> tuple[str, str]:
    key = value = ""
    for field in wire.fields(span):
        match field.number:
            case 1:
                key = wire.text(field)
            case 2:
                value = wire.text(field)
    return key, value


def _size(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WireError(f"external data with {key} {text[:40]!r}")
    return int(text)
