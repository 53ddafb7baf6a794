"""Floating-point operations of an ONNX graph, by the element type that they are done in.

Of one call with M = B = 1 and N = 16. A multiply-add is 2; matrix products are counted exactly, any
other operator as one per value of its output, and what only moves or converts values not at all. A
product of dequantised values counts under the type that they were quantised to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from refsam_trt.errors import InternalError
from refsam_trt.families.base import GraphSpec

SIZES = {"M": 1, "B": 1, "N": 16}
_MOVES = frozenset(
    [
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_QUANTISED: dict[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
}
_Shape = tuple[int, ...]
# As the contract writes them, and as the exporter does inside a graph.
_SYMBOLS = SIZES | {f"num_{name.lower()}": size for name, size in SIZES.items()}


def count_flops(path: Path, spec: GraphSpec) -> dict[str, int]:
    """Return the operations of a graph per element type, sorted by type.

    Args:
        path: an ONNX file of our exporter, which writes the shape of every tensor; weights are not
            read.
        spec: its contract.

    Raises:
        InternalError: the shape of a tensor that is computed cannot be told.
    """
    graph = onnx.load(path, load_external_data=False).graph
    types, shapes = _tensors(graph)
    for value, tensor in zip(graph.output, spec.outputs, strict=True):
        shapes[value.name] = tensor.shape(SIZES)
    counts: Counter[str] = Counter()
    stored: dict[str, str] = {}  # dequantised tensor -> type of what it was made from
    for node in graph.node:
        dtype = _FLOATS.get(types.get(node.output[0], 0))
        if node.op_type == "DequantizeLinear":
            stored[node.output[0]] = _QUANTISED[types[node.input[0]]]
        if node.op_type == "MatMul" and all(name in stored for name in node.input):
            dtype = stored[node.input[0]]
        if dtype is not None and node.op_type not in _MOVES:
            counts[dtype] += _flops(path, node, shapes)
    return dict(sorted(counts.items()))


def _tensors(graph: Any) -> tuple[dict[str, int], dict[str, _Shape]]:
    types: dict[str, int] = {}
    shapes: dict[str, _Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        sizes = [_size(dim) for dim in tensor.shape.dim]
        if tensor.HasField("shape") and None not in sizes:
            shapes[value.name] = tuple(size for size in sizes if size is not None)
    for weight in graph.initializer:
        types[weight.name], shapes[weight.name] = weight.data_type, tuple(weight.dims)
    return types, shapes


def _size(dim: Any) -> int | None:
    """Return the size of a dim such as 8, `num_n + 1` or `4*num_n + 4`; None if it has none."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    total = 0
    for term in dim.dim_param.split("+"):
        factors = [factor.strip() for factor in term.split("*")]
        numbers = [_SYMBOLS.get(f, int(f) if f.isdecimal() else None) for f in factors]
        if None in numbers:
            return None
        total += math.prod(number for number in numbers if number is not None)
    return total


def _flops(path: Path, node: Any, shapes: Mapping[str, _Shape]) -> int:
    def shape(name: str) -> _Shape:
        if name not in shapes:
            raise InternalError(f"{path}: no shape known of {name}, at the {node.op_type} node")
        return shapes[name]

    num_out = math.prod(shape(node.output[0]))
    match node.op_type:
        case "MatMul":
            return 2 * num_out * shape(node.input[0])[-1]
        case "Gemm":
            return 2 * num_out * shape(node.input[0])[0 if _attribute(node, "transA", 0) else 1]
        case "Conv":
            return 2 * num_out * math.prod(shape(node.input[1])[1:])
        case "ConvTranspose":
            given, weight = shape(node.input[0]), shape(node.input[1])
            return 2 * math.prod(given) * math.prod(weight[1:])
        case "Einsum":
            equation = _attribute(node, "equation", b"").decode()
            return 2 * _einsum_terms(equation, [shape(name) for name in node.input])
    return num_out


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _einsum_terms(equation: str, shapes: Sequence[_Shape]) -> int:
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        sizes.update(zip(letters.strip(), shape, strict=True))
    return math.prod(sizes.values())
