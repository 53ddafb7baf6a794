"""Which operations compute in which type: one policy for graphs, range audit and rounding.

A policy names what stays in fp32 (the islands) and computes all else in half precision:

* norms (`LayerNorm`, SAM's `LayerNorm2d`, the RMS norm of T5, L2 norms), softmax and long sums are
  islands, inputs cast on the way in and results on the way out;
* fp16 leaves the text encoder alone: T5 overflows in fp16 (refsam-model 3.2), and the graph runs
  once per expression;
* bf16 takes the text encoder too, but leaves convolutions and einsum in fp32: ONNX has no bf16 for
  them up to operator set 20.

Inputs and outputs of every graph stay float32, the track token among them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from refsam_trt.contract.refsam import DECODER_STEP, GRAPHS, IMAGE_ENCODER
from refsam_trt.errors import UsageError

PRECISIONS = ("fp32", "fp16", "bf16")

ISLAND_MODULES = frozenset({"LayerNorm", "LayerNorm2d", "L2Norm", "RmsNorm"})
"""Class names of modules whose every operation stays in fp32."""

_ISLAND_OPS = frozenset(
    {"_softmax", "layer_norm", "linalg_vector_norm", "mean", "native_layer_norm", "softmax", "sum"}
)
# Casts keep the type that they name: the policy changes computations alone.
_CASTS = frozenset({"_to_copy", "convert_element_type", "to"})
_NO_BF16 = frozenset({"conv2d", "conv_transpose2d", "convolution", "einsum"})


@dataclass(frozen=True)
class PrecisionPolicy:
    """What one precision computes in half.

    Attributes:
        name: the precision.
        dtype: the half type.
        graphs: the graphs it applies to; the others are the fp32 ones.
        island_ops: operators that stay in fp32, beside `ISLAND_MODULES`.
    """

    name: str
    dtype: torch.dtype
    graphs: tuple[str, ...]
    island_ops: frozenset[str]


POLICIES = {
    "fp16": PrecisionPolicy("fp16", torch.float16, (IMAGE_ENCODER, DECODER_STEP), _ISLAND_OPS),
    "bf16": PrecisionPolicy("bf16", torch.bfloat16, GRAPHS, _ISLAND_OPS | _NO_BF16),
}


def graph_precision(precision: str, graph: str) -> str:
    """Return the precision that a graph of a variant is computed in."""
    policy = POLICIES.get(precision)
    return precision if policy is None or graph in policy.graphs else "fp32"


def parse_precisions(text: str) -> tuple[str, ...]:
    """Return the precisions of a comma-separated list, each once, in the order of `PRECISIONS`.

    Raises:
        UsageError: none, or an unknown one.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise UsageError(
            f"precision {', '.join(map(repr, unknown))}: choose among {', '.join(PRECISIONS)}, "
            "separated by commas"
        )
    return tuple(name for name in PRECISIONS if name in names)


def half_nodes(graph: fx.Graph, policy: PrecisionPolicy) -> frozenset[str]:
    """Return the names of the nodes of an exported graph that compute in half."""
    names: set[str] = set()
    for node in graph.nodes:
        if _is_half(node, policy, names):
            names.add(node.name)
    return frozenset(names)


def is_float(node: fx.Node) -> bool:
    """Whether a node gives floating-point tensors."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(isinstance(v, Tensor) and v.is_floating_point() for v in value)
    return isinstance(value, Tensor) and value.is_floating_point()


def module_path(node: fx.Node) -> str:
    """Return the innermost module of the model that a node is from, "" for the graph itself."""
    stack = _modules(node)
    path = stack[-1][0] if stack else ""
    return "" if path.startswith("_") else path


def operator_name(node: fx.Node) -> str:
    """Return the name of a node's operator without name space and overload, such as `linear`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2]
    return getattr(node.target, "__name__", "")


def _is_half(node: fx.Node, policy: PrecisionPolicy, half: set[str]) -> bool:
    if node.op != "call_function" or not is_float(node):
        return False
    if node.target is operator.getitem:
        return node.all_input_nodes[0].name in half
    if not any(is_float(source) for source in node.all_input_nodes):
        return False  # a constant keeps the type that it was created with
    name = operator_name(node)
    return name not in policy.island_ops | _CASTS and not _is_in_island(node)


def _is_in_island(node: fx.Node) -> bool:
    return any(kind.rpartition(".")[2] in ISLAND_MODULES for _, kind in _modules(node))


def _modules(node: fx.Node) -> list[tuple[str, str]]:
    """Return path and class name of the modules around a node, outermost first."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return [
        (path, kind if isinstance(kind, str) else kind.__name__) for path, kind in stack.values()
    ]
