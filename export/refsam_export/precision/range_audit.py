"""The largest absolute value of every tensor that a precision policy keeps in half.

The program runs in fp32, so that an overflow shows as a number and not as what a runtime makes of
it: ONNX Runtime on a CPU computes many fp16 operators in fp32 and hides it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from refsam_export.precision.policy import (
    PrecisionPolicy,
    half_nodes,
    is_float,
    module_path,
    operator_name,
)
from refsam_export.precision.typed_program import VIEWS

MAX_ABSOLUTE = 16384.0
"""A quarter of the largest fp16 number: room for what no evaluation set has shown."""


@dataclass(frozen=True)
class Extent:
    """One tensor: where it is made, and the largest absolute value that it has had."""

    graph: str
    tensor: str
    operator: str
    module: str
    max_abs: float


@dataclass(frozen=True)
class RangeFigures:
    """The verdict of an audit; `largest` are the largest of all `num_tensors`."""

    passed: bool
    bound: float
    max_abs: float
    num_tensors: int
    largest: tuple[Extent, ...]

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        state, extent = "passed" if self.passed else "FAILED", self.largest[0]
        return (
            f"range {state}: largest of {self.num_tensors} fp16 tensors {extent.max_abs:.4g} "
            f"({extent.tensor}, {extent.operator} of {extent.module or extent.graph}), at most "
            f"{self.bound:.0f} allowed"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, as manifests hold it."""
        return {**vars(self), "largest": [vars(extent) for extent in self.largest]}


class RangeAudit:
    """Runs programs of graphs and keeps the maxima of their half tensors.

    Half tensors are the outputs of half nodes, and whatever half nodes take that is not one: inputs
    of the graph, results of fp32 islands, weights.

    Args:
        programs: fp32 program of each graph (`typed_program.trace`); those that the policy leaves
            in fp32 are run, but have no half tensors.
        policy: what is half.
        graphs: the graphs to treat as half; None takes the policy's.
    """

    def __init__(
        self,
        programs: Mapping[str, fx.GraphModule],
        policy: PrecisionPolicy,
        graphs: tuple[str, ...] | None = None,
    ) -> None:
        half_graphs = policy.graphs if graphs is None else graphs
        self._recorders = {
            name: _Recorder(program, _half_tensors(program, policy) if name in half_graphs else {})
            for name, program in programs.items()
        }

    def run(self, graph: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a graph in fp32 and note its maxima; returns its outputs."""
        with torch.no_grad():
            return tuple(self._recorders[graph].run(*inputs))

    def extents(self) -> list[Extent]:
        """Return every half tensor seen, the largest first."""
        extents = [
            Extent(graph, node.name, operator_name(node) or node.op, module_path(node), maximum)
            for graph, recorder in self._recorders.items()
            for node, maximum in recorder.maxima.items()
        ]
        return sorted(extents, key=lambda extent: (-extent.max_abs, extent.graph, extent.tensor))

    def figures(self, num_shown: int = 20) -> RangeFigures:
        """Return the verdict, with so many of the largest tensors."""
        extents = self.extents()
        largest = extents[0].max_abs if extents else 0.0
        return RangeFigures(
            passed=largest <= MAX_ABSOLUTE,
            bound=MAX_ABSOLUTE,
            max_abs=min(largest, float(torch.finfo(torch.float64).max)),
            num_tensors=len(extents),
            largest=tuple(extents[:num_shown]),
        )


def _half_tensors(program: fx.GraphModule, policy: PrecisionPolicy) -> dict[str, fx.Node]:
    half = half_nodes(program.graph, policy)
    tensors: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.name not in half:
            continue
        if operator_name(node) not in VIEWS:
            tensors[node.name] = node
        for source in node.all_input_nodes:
            if is_float(source) and source.name not in half:
                tensors[source.name] = source
    return tensors


class _Recorder(fx.Interpreter):
    """Runs a program; the interpreter frees each value after its last use."""

    def __init__(self, program: fx.GraphModule, tensors: Mapping[str, fx.Node]) -> None:
        super().__init__(program)
        self._tensors = tensors
        self.maxima: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        # Weights are the same in every run, so they are measured once.
        if n.name in self._tensors and not (n.op == "get_attr" and n in self.maxima):
            self.maxima[n] = max(self.maxima.get(n, 0.0), _max_abs(value))
        return value


def _max_abs(value: Any) -> float:
    maximum = 0.0
    for tensor in value if isinstance(value, list | tuple) else [value]:
        if tensor.numel():
            low, high = torch.aminmax(tensor)
            largest = max(-float(low), float(high))
            # NaN compares as smaller than everything, so it must become the largest number.
            maximum = max(maximum, math.inf if math.isnan(largest) else largest)
    return maximum
