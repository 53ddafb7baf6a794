"""What a stated precision means for the nodes of a graph.

Precision belongs to the graph, never to a builder's flag: a graph that states fp16 and multiplies
matrices in fp32 is refused, and so is one that states fp32 and rounds somewhere. A quantised graph
states two: `int8-fp16` multiplies some matrices in int8 and does all else as an fp16 graph does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from refsam_trt.onnx_file.types import PRODUCTS

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")

QUANTISED = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""Precision of quantised variants -> element type that they multiply in."""

PRECISIONS = (*FLOAT_PRECISIONS, *QUANTISED)
"""All that a variant may state; a quantised graph adds its base (`stated_by_graphs`)."""

BASES = ("fp32", "fp16")
"""What a quantised graph may do everything else in."""

# Up to operator set 20, ONNX has no bf16 for these.
_FP32_IN_BF16 = frozenset({"Conv", "ConvTranspose", "Einsum"})
_HALF = {"fp16": "float16", "bf16": "bfloat16"}
_FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})
_ROUNDING = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})


def split_precision(stated: str) -> tuple[str | None, str]:
    """Return element type of quantised products, or None, and floating-point precision of a graph.

    `int8-fp16` gives int8 and fp16; `fp16` gives None and fp16.
    """
    scheme, dash, base = stated.partition("-")
    return (QUANTISED.get(scheme), base) if dash else (None, stated)


def stated_by_graphs(precision: str) -> tuple[str, ...]:
    """Return what graphs that are of a variant's own precision may state."""
    if precision in QUANTISED:
        return tuple(f"{precision}-{base}" for base in BASES)
    return (precision,)


def precision_problem(precision: str, nodes: Mapping[tuple[str, str], int]) -> str | None:
    """Say how the nodes of a graph contradict the precision that it states, None if they do not.

    Args:
        precision: what the graph states, such as `fp16` or `int8-fp16`.
        nodes: how many there are of each operator type and element type (`onnx_file.types`).
    """
    quantised, base = split_precision(precision)
    half = _HALF.get(base)
    allowed = {"float32", half}
    has_half = False
    for (op_type, dtype), count in sorted(nodes.items()):
        if dtype in _FLOATS - allowed:
            return f"{count} nodes of type {op_type} compute in {dtype}"
        if op_type in _ROUNDING and dtype != quantised:
            return f"{count} nodes of type {op_type} round to {dtype}"
        if op_type in PRODUCTS and not (op_type == "MatMul" and quantised and dtype == quantised):
            is_half = half and not (base == "bf16" and op_type in _FP32_IN_BF16)
            expected = half if is_half else "float32"
            if dtype != expected:
                actual = dtype or "a type that cannot be told"
                return f"{count} nodes of type {op_type} compute in {actual}, not in {expected}"
        has_half = has_half or dtype == half
    if quantised and not nodes.get(("MatMul", quantised)):
        return f"no matrix product computes in {quantised}"
    if half and not has_half:
        return f"no node computes in {half}"
    return None


def count_dtypes(nodes: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Return how many nodes compute in each element type, sorted: a manifest's `node_dtypes`."""
    counts: Counter[str] = Counter()
    for (_, dtype), count in nodes.items():
        counts[dtype or "unknown"] += count
    return dict(sorted(counts.items()))
