"""Floating-point operations of an ONNX graph, by the element type that they are done in.

Of one call with M = B = 1 and N = 16. A multiply-add is 2; matrix products are counted exactly, any
other operator as one per value of its output, and what only moves or converts values not at all. A
product of dequantised values counts under the type that they were quantised to.

The exporter writes what it counts into the manifest, and the loader counts again: from the shapes
that the file tells of its tensors, so with the same trust as in the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import OnnxSummary
from refsam_trt.onnx_file.tensors import Dims
from refsam_trt.onnx_file.types import OnnxNode

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

_LARGEST = 2**63 - 1
"""Of a size, and of the operations of one node: more is no tensor."""

_Shape = tuple[int, ...]


def count_flops(path: Path, summary: OnnxSummary, spec: GraphSpec) -> dict[str, int]:
    """Return the operations of a graph per element type, sorted by type.

    Args:
        path: the ONNX file, for messages.
        summary: what it says of itself.
        spec: its contract, for the symbols in its shapes.

    Raises:
        BundleError: the shape of a tensor that is computed is not told, or cannot be.
    """
    shapes = _Shapes(path, summary.dims, spec)
    counts: Counter[str] = Counter()
    for node, dtype in zip(summary.nodes, summary.dtypes, strict=True):
        if dtype in _COUNTED and node.op_type not in _MOVES and node.outputs:
            counts[dtype] += _flops(node, shapes)
    return dict(sorted(counts.items()))


class _Shapes:
    """Shapes of tensors for one set of sizes."""

    def __init__(self, path: Path, dims: Mapping[str, Dims], spec: GraphSpec) -> None:
        self._path, self._dims = path, dims
        symbols = {symbol for tensor in spec.inputs for symbol in tensor.symbols} | SIZES.keys()
        sizes = {symbol: SIZES.get(symbol, 1) for symbol in symbols}
        # As the contract writes them, and as the exporter does inside a graph.
        self._sizes = sizes | {f"num_{name.lower()}": size for name, size in sizes.items()}
        self._known: dict[str, int | None] = {}

    def of(self, name: str, node: OnnxNode) -> _Shape:
        """Return the shape of a tensor at a node."""
        sizes = [self._bounded(dim) for dim in self._dims.get(name, (None,))]
        if None in sizes:
            raise BundleError(
                f"{self._path}: no shape known of {name}, at the {node.op_type} node, so that its "
                "operations cannot be counted; export the bundle anew with refsam-export"
            )
        return tuple(size for size in sizes if size is not None)

    def wrong(self, node: OnnxNode) -> BundleError:
        """Return the complaint about shapes that do not go with their operator."""
        return BundleError(
            f"{self._path}: a {node.op_type} node of tensors whose shapes it cannot take; export "
            "the bundle anew with refsam-export"
        )

    def _bounded(self, dim: int | str | None) -> int | None:
        """Return the size of a dim, None if it has none that a tensor can have."""
        if isinstance(dim, str):
            if dim not in self._known:
                self._known[dim] = self._size(dim)
            size = self._known[dim]
        else:
            size = dim
        return size if size is not None and 0 <= size <= _LARGEST else None

    def _size(self, dim: str) -> int | None:
        """Return the size of a dim such as `num_n + 1` or `4*num_n + 4`; None if it has none."""
        total = 0
        for term in dim.split("+"):
            factors = [factor.strip() for factor in term.split("*")]
            numbers = [self._sizes.get(f, _number(f)) for f in factors]
            if None in numbers:
                return None
            total += math.prod(number for number in numbers if number is not None)
        return total


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _flops(node: OnnxNode, shapes: _Shapes) -> int:
    try:
        found = _counted(node, shapes)
    except (IndexError, ValueError) as error:
        raise shapes.wrong(node) from error
    if found > _LARGEST:
        raise shapes.wrong(node)
    return found


def _counted(node: OnnxNode, shapes: _Shapes) -> int:
    num_out = math.prod(shapes.of(node.outputs[0], node))
    match node.op_type:
        case "MatMul":
            return 2 * num_out * shapes.of(node.inputs[0], node)[-1]
        case "Gemm":
            return 2 * num_out * shapes.of(node.inputs[0], node)[0 if node.is_transposed else 1]
        case "Conv":
            return 2 * num_out * math.prod(shapes.of(node.inputs[1], node)[1:])
        case "ConvTranspose":
            given, weight = (shapes.of(name, node) for name in node.inputs[:2])
            return 2 * math.prod(given) * math.prod(weight[1:])
        case "Einsum":
            return 2 * _einsum_terms(node, shapes)
    return num_out


def _einsum_terms(node: OnnxNode, shapes: _Shapes) -> int:
    sizes: dict[str, int] = {}
    terms = node.equation.partition("->")[0].split(",")
    for letters, name in zip(terms, node.inputs, strict=True):
        sizes.update(zip(letters.strip(), shapes.of(name, node), strict=True))
    return math.prod(sizes.values())
