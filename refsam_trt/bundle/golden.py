"""Golden inputs and outputs of plans: written when they are built, compared where they run.

Format: a safetensors file with the tensors `<graph>.inputs.<name>` and `<graph>.outputs.<name>`.
Outputs are float32 of the fp32 graphs where the bundle has them, so every precision is judged by
what it should approximate: of int8 graphs that is the same products between fp32 nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from refsam_trt.errors import PlanDamagedError

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1, "fp8": 2e-1}
"""Largest relative error per precision: far above rounding, far below any wrong engine."""
_TF32_LIKE = "fp16"
"""TF32 rounds what it multiplies to fp16's 10 bits."""

_INPUTS, _OUTPUTS = "inputs", "outputs"


@dataclass(frozen=True)
class GoldenRun:
    """One call of one graph: host arrays by tensor name; outputs in float32."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def errors(self, found: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return per output |found - golden| / |golden| (2-norms); infinite if not finite."""
        return {name: _error(found[name], golden) for name, golden in self.outputs.items()}


def tolerance(precision: str, *, has_tf32: bool) -> float:
    """Return the largest relative error of a graph's plan.

    Args:
        precision: the graph's own; of a quantised one, what stands before the base counts.
        has_tf32: whether fp32 products may be rounded to TF32.
    """
    name = precision.partition("-")[0]
    return TOLERANCES[_TF32_LIKE if name == "fp32" and has_tf32 else name]


def write_golden(path: Path, runs: Mapping[str, GoldenRun]) -> None:
    """Write the runs of all graphs."""
    tensors = {
        f"{graph}.{kind}.{name}": np.ascontiguousarray(array)
        for graph, run in runs.items()
        for kind, arrays in ((_INPUTS, run.inputs), (_OUTPUTS, run.outputs))
        for name, array in arrays.items()
    }
    path.write_bytes(save(tensors))  # `save_file` would make it unreadable for others


def read_golden(path: Path) -> dict[str, GoldenRun]:
    """Read what `write_golden` wrote.

    Raises:
        PlanDamagedError: no such file, or not of this format.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PlanDamagedError(
            f"{path}: golden tensors cannot be read ({error}); build the plans again with "
            "refsam-build"
        ) from error
    runs: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, array in tensors.items():
        graph, _, rest = key.partition(".")
        kind, _, name = rest.partition(".")
        kinds = runs.setdefault(graph, {_INPUTS: {}, _OUTPUTS: {}})
        if kind not in kinds:
            raise PlanDamagedError(
                f"{path}: holds {key!r}, expected GRAPH.inputs.NAME or GRAPH.outputs.NAME; build "
                "the plans again with refsam-build"
            )
        kinds[kind][name] = array
    return {graph: GoldenRun(kinds[_INPUTS], kinds[_OUTPUTS]) for graph, kinds in runs.items()}


def _error(array: np.ndarray, golden: np.ndarray) -> float:
    difference = np.linalg.norm(array.astype(np.float64) - golden.astype(np.float64))
    error = float(difference / max(float(np.linalg.norm(golden.astype(np.float64))), 1e-12))
    return error if np.isfinite(error) else float("inf")
