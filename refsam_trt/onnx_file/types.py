"""Element types inside an ONNX graph, derived from its inputs, its weights and its operators.

What a file claims about the types of tensors between its nodes (`value_info`) is not used: it may
be absent or wrong, and the operators' own rules suffice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that do nearly all of the arithmetic."""

UNKNOWN = ""
"""Type of what no rule knows: results of control flow, and of tensors that nothing defines."""


class OnnxNode(NamedTuple):
    """One node, as far as types depend on it.

    `declared` is the type that an attribute names: of `Cast` its `to`, of `Constant` and
    `ConstantOfShape` that of the value; else empty.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    declared: str


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


_FIXED = {
    **dict.fromkeys(("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size"), "int64"),
    **dict.fromkeys(
        (
            "And",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "IsInf",
            "IsNaN",
            "Less",
            "LessOrEqual",
            "Not",
            "Or",
            "Xor",
        ),
        "bool",
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), UNKNOWN),
}
# Of all others the first input has the type of the outputs.
_DECIDING_INPUT = {
    "CastLike": 1,
    "DequantizeLinear": 1,
    "OneHot": 2,
    "QuantizeLinear": 2,
    "Where": 1,
}
_DEFAULTS = {"ConstantOfShape": "float32", "QuantizeLinear": "uint8"}
_INDEX_OUTPUTS = {("MaxPool", 1), ("TopK", 1)}


def dtype_name(elem_type: int) -> str:
    """Return numpy's name of an element type (or bfloat16, float8_e4m3fn), or `type <n>`."""
    return _DTYPES.get(elem_type, f"type {elem_type}")


def types_of(nodes: Iterable[OnnxNode], known: Mapping[str, str]) -> list[str]:
    """Return the element type that each node computes in.

    That is the type of their first output; but a product whose two factors come straight out of
    `DequantizeLinear` nodes of one type computes in that type, as every runtime that supports it
    multiplies the quantised values.

    Args:
        nodes: in topological order.
        known: tensor -> type, of the graph's inputs and weights.
    """
    types = dict(known)
    stored: dict[str, str] = {}  # dequantised tensor -> type of what it was made from
    dtypes: list[str] = []
    for node in nodes:
        dtype = _output_type(node, types)
        for index, name in enumerate(node.outputs):
            types[name] = "int64" if (node.op_type, index) in _INDEX_OUTPUTS else dtype
        if node.op_type == "DequantizeLinear" and node.inputs and node.outputs:
            stored[node.outputs[0]] = types.get(node.inputs[0], UNKNOWN)
        factors = {stored.get(name, UNKNOWN) for name in node.inputs[:2]}
        if node.op_type in PRODUCTS and len(factors) == 1 and factors != {UNKNOWN}:
            dtype = factors.pop()
        dtypes.append(dtype)
    return dtypes


def _output_type(node: OnnxNode, types: Mapping[str, str]) -> str:
    if node.declared:
        return node.declared
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    index = _DECIDING_INPUT.get(node.op_type, 0)
    if index < len(node.inputs) and node.op_type != "ConstantOfShape":
        return types.get(node.inputs[index], UNKNOWN)
    return _DEFAULTS.get(node.op_type, UNKNOWN)
