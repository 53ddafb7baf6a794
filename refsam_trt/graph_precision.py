"""What a stated precision means for the nodes of a graph.

Precision belongs to the graph, never to a builder's flag: a graph that states fp16 and multiplies
matrices in fp32 is refused, and so is one that states fp32 and rounds somewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

PRECISIONS = ("fp32", "fp16", "bf16")
"""All that a graph may state."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that do nearly all of the arithmetic."""

# Up to operator set 20, ONNX has no bf16 for these.
_FP32_IN_BF16 = frozenset({"Conv", "ConvTranspose", "Einsum"})
_HALF = {"fp16": "float16", "bf16": "bfloat16"}
_FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})


def precision_problem(precision: str, nodes: Mapping[tuple[str, str], int]) -> str | None:
    """Say how the nodes of a graph contradict the precision that it states, None if they do not.

    Args:
        precision: one of `PRECISIONS`.
        nodes: how many there are of each operator type and element type (`onnx_types`).
    """
    half = _HALF.get(precision)
    allowed = {"float32", half}
    has_half = False
    for (op_type, dtype), count in sorted(nodes.items()):
        if dtype in _FLOATS - allowed:
            return f"{count} nodes of type {op_type} compute in {dtype}"
        if op_type in PRODUCTS:
            is_half = half and not (precision == "bf16" and op_type in _FP32_IN_BF16)
            expected = half if is_half else "float32"
            if dtype != expected:
                found = dtype or "a type that cannot be told"
                return f"{count} nodes of type {op_type} compute in {found}, not in {expected}"
        has_half = has_half or dtype == half
    if half and not has_half:
        return f"no node computes in {half}"
    return None


def count_dtypes(nodes: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Return how many nodes compute in each element type, sorted: a manifest's `node_dtypes`."""
    found: Counter[str] = Counter()
    for (_, dtype), count in nodes.items():
        found[dtype or "unknown"] += count
    return dict(sorted(found.items()))


__all__ = ["PRECISIONS", "PRODUCTS", "count_dtypes", "precision_problem"]
