"""Floating-point operations of an ONNX graph, by the element type that they are done in.

Of one call with M = B = 1 and N = 16. A multiply-add is 2; matrix products are counted exactly, any
other operator as one per value of its output, and what only moves or converts values not at all. A
product of dequantised values counts under the type that they were quantised to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import OnnxSummary

SIZES = {"M": 1, "B": 1, "N": 16}
"""What symbols stand for; any other one that a family has is 1."""

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
_COUNTED = frozenset({"float32", "float16", "bfloat16", "int8", "float8_e4m3fn"})
"""Integers of 64 bits and truth values are sizes and masks."""

_Shape = tuple[int, ...]


def count_flops(path: Path, summary: OnnxSummary, spec: GraphSpec) -> dict[str, int]:
    """Return the operations of a graph per element type, sorted by type.

    Args:
        path: the ONNX file, which tells the shapes of all tensors (`value_info`).
        summary: of that file.
        spec: its contract, for the symbols in its shapes.

    Raises:
        BundleError: the shape of a tensor that is computed is not told, or cannot be.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = _Shapes(path, graph, spec)
    counts: Counter[str] = Counter()
    for node, dtype in zip(_nodes(graph), summary.dtypes, strict=True):
        if dtype in _COUNTED and node.op_type not in _MOVES and node.output:
            try:
                counts[dtype] += _flops(node, shapes)
            except (IndexError, ValueError) as error:
                raise BundleError(
                    f"{path}: a {node.op_type} node of tensors whose shapes it cannot take; "
                    "export the bundle anew with refsam-export"
                ) from error
    return dict(sorted(counts.items()))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes in the order of `OnnxSummary.dtypes`: a node after those inside it."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
        yield node


class _Shapes:
    """Shapes of a graph's tensors for one set of sizes."""

    def __init__(self, path: Path, graph: onnx.GraphProto, spec: GraphSpec) -> None:
        self._path = path
        symbols = {symbol for tensor in spec.inputs for symbol in tensor.symbols} | SIZES.keys()
        sizes = {symbol: SIZES.get(symbol, 1) for symbol in symbols}
        # As the contract writes them, and as the exporter does inside a graph.
        sizes |= {f"num_{symbol.lower()}": size for symbol, size in sizes.items()}
        self._shapes = {
            value.name: [_size(dim, sizes) for dim in value.type.tensor_type.shape.dim]
            # The first claim of `value_info` counts, and those of the border count more.
            for value in (*reversed(graph.value_info), *graph.input, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self._shapes |= {weight.name: list(weight.dims) for weight in graph.initializer}

    def of(self, name: str, node: onnx.NodeProto) -> _Shape:
        """Return the shape of a tensor at a node."""
        sizes = self._shapes.get(name, [-1])
        if min(sizes, default=0) < 0:
            raise BundleError(
                f"{self._path}: no shape known of {name}, at the {node.op_type} node, so that its "
                "operations cannot be counted; export the bundle anew with refsam-export"
            )
        return tuple(sizes)


def _size(dim: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, int]) -> int:
    """Return the size of a dim such as 7, `num_n + 1` or `4*num_n + 4`; -1 if it has none."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    terms = [[factor.strip() for factor in term.split("*")] for term in dim.dim_param.split("+")]
    if any(not (f in sizes or f.isdecimal()) for factors in terms for f in factors):
        return -1
    return sum(math.prod(sizes[f] if f in sizes else int(f) for f in factors) for factors in terms)


def _flops(node: onnx.NodeProto, shapes: _Shapes) -> int:
    num_out = math.prod(shapes.of(node.output[0], node))
    match node.op_type:
        case "MatMul":
            return 2 * num_out * shapes.of(node.input[0], node)[-1]
        case "Gemm":
            is_transposed = any(a.name == "transA" and a.i == 1 for a in node.attribute)
            return 2 * num_out * shapes.of(node.input[0], node)[0 if is_transposed else 1]
        case "Conv":
            return 2 * num_out * math.prod(shapes.of(node.input[1], node)[1:])
        case "ConvTranspose":
            image, weight = (shapes.of(name, node) for name in node.input[:2])
            return 2 * math.prod(image) * math.prod(weight[1:])
        case "Einsum":
            return 2 * _einsum_terms(node, shapes)
    return num_out


def _einsum_terms(node: onnx.NodeProto, shapes: _Shapes) -> int:
    (equation,) = (a.s.decode() for a in node.attribute if a.name == "equation")
    sizes: dict[str, int] = {}
    terms = equation.partition("->")[0].split(",")
    for letters, name in zip(terms, node.input, strict=True):
        sizes.update(zip(letters.strip(), shapes.of(name, node), strict=True))
    return math.prod(sizes.values())
