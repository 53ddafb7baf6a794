"""Finds where, inside one graph, values begin to differ from PyTorch's.

A tensor diverges when it differs by more than the tolerance. Divergence is not monotone (a softmax
may swallow an error, a sum may show it again), so a binary search alone could stop at the wrong
place. What is returned is certain: a tensor that diverges although everything it is computed from
agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refsam_bench.parity.graph_values import OnnxGraph, Sources, TorchProgram
from refsam_export.key_bias import MASKED
from refsam_export.parity.figures import NOT_FINITE, relative_error

_NUM_PROBES = 8
"""Tensors per run: each divides the search by nine, and this many fit into memory together."""


@dataclass(frozen=True)
class PassedNode:
    """A node on the way: its operator, the tensor it makes, the weights it reads."""

    op_type: str
    tensor: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """The tensor that diverges although all it is computed from agrees.

    `last_agreeing` is the latest of those, or a graph input. `nodes` lead from them to the tensor,
    which the last of them makes; what the others make is unknown to PyTorch. `module` is the part
    of the model that computes the tensor, None for the graph's own code.
    """

    tensor: str
    op_type: str
    module: str | None
    relative_error: float
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    last_agreeing: str | None
    nodes: tuple[PassedNode, ...]


@dataclass(frozen=True)
class _Measured:
    error: float
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]


class GraphSearch:
    """One graph, one set of inputs; every tensor is measured at most once."""

    def __init__(
        self,
        graph: OnnxGraph,
        program: TorchProgram,
        inputs: Mapping[str, np.ndarray],
        tolerance: float,
        report: Callable[[str], None],
    ) -> None:
        self._graph, self._program = graph, program
        self._inputs, self._tolerance, self._report = inputs, tolerance, report
        self._measured: dict[str, _Measured] = {}

    def origin(self) -> Origin | None:
        """Return where the graph begins to diverge; None if no output does."""
        suspect = self._first_diverging(self._graph.outputs)
        if suspect is None:
            return None
        while True:
            diverging = self._divide(suspect)
            sources = self._graph.sources(diverging, self._program.knows)
            suspect = self._first_diverging(sources.tensors)
            if suspect is None:
                return self._described(diverging, sources)

    def _divide(self, suspect: str) -> str:
        """Return a diverging tensor, at or before `suspect`, the known one before which agrees."""
        before = [name for name in self._graph.ancestors(suspect) if self._program.knows(name)]
        line = [*before, suspect]
        low, high = -1, len(line) - 1
        while high - low > 1:
            spaced = np.linspace(low, high, _NUM_PROBES + 2).round().astype(int)
            probes = [int(index) for index in np.unique(spaced)[1:-1]]
            self._measure([line[index] for index in probes])
            for index in probes:
                if self._diverges(line[index]):
                    high = index
                    break
                low = index
        return line[high]

    def _first_diverging(self, names: Sequence[str]) -> str | None:
        self._measure(names)
        return min(
            filter(self._diverges, names), key=self._graph.producers.__getitem__, default=None
        )

    def _diverges(self, name: str) -> bool:
        return self._measured[name].error > self._tolerance

    def _measure(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._measured]
        if not new:
            return
        self._report(f"comparing {len(new)} tensors, {new[0]} to {new[-1]}")
        values = self._graph.values(new, self._inputs)
        expected = self._program.values(new, self._inputs)
        for name in new:
            error = tensor_error(values[name], expected[name])
            self._measured[name] = _Measured(error, values[name].shape, expected[name].shape)

    def _described(self, name: str, sources: Sources) -> Origin:
        measured = self._measured[name]
        agreeing = sources.tensors or sources.inputs
        weights = self._graph.weights
        return Origin(
            tensor=name,
            op_type=sources.nodes[-1].op_type,
            module=self._program.module_path(name),
            relative_error=measured.error,
            shape=measured.shape,
            expected_shape=measured.expected_shape,
            last_agreeing=agreeing[-1] if agreeing else None,
            nodes=tuple(
                PassedNode(
                    node.op_type, node.output[0], tuple(w for w in node.input if w in weights)
                )
                for node in sources.nodes
            ),
        )


def tensor_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return `relative_error` of any two tensors; `NOT_FINITE` for different shapes.

    Attention scores at masked keys are near -1e4 and are compared among themselves: as the scale of
    all scores they would hide every error.
    """
    if values.shape != expected.shape:
        return NOT_FINITE
    is_masked = expected < MASKED / 2
    parts = (is_masked, ~is_masked)
    return max(
        (relative_error(values[part], expected[part]) for part in parts if part.any()), default=0.0
    )
