"""How far a variant is from the PyTorch reference, and how far it may be, by its precision."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# The error of anything that is not finite: JSON has no infinity.
NOT_FINITE = sys.float_info.max


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    `NOT_FINITE` if either holds a value that is not finite.
    """
    if not (np.isfinite(values).all() and np.isfinite(expected).all()):
        return NOT_FINITE
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(values.astype(np.float64) - expected).max()) / scale


@dataclass(frozen=True)
class Bounds:
    """Largest relative error of a graph run alone, least mask IoU of any frame of the chain."""

    max_relative_error: float
    min_mask_iou: float


BOUNDS = {
    "fp32": Bounds(1e-4, 0.999),
    # Random weights hesitate more than trained ones, which keep 0.9996.
    "fp16": Bounds(5e-3, 0.98),
    # Three digits less than fp32: the words of trained text encoders move by a tenth.
    "bf16": Bounds(0.2, 0.95),
    # What eight bits cost is for calibration to bound, in J&F. These find graphs that are wrong.
    "int8": Bounds(0.5, 0.5),
    "fp8": Bounds(0.5, 0.5),
}


@dataclass(frozen=True)
class ChainRow:
    """One expression in one frame of the chain: errors, and the expected mask's share of pixels."""

    frame: int
    expression: int
    logits_error: float
    mask_iou: float
    coverage: float


@dataclass(frozen=True)
class Parity:
    """Figures of one variant against the PyTorch reference, and the bounds of its precision.

    `graphs` holds the relative error of every output of every graph run alone; the chain's figures
    are the worst over frames and expressions, `chain` lists each.
    """

    variant: str
    precision: str
    backend: str
    num_frames: int
    num_tokens: list[int]
    graphs: dict[str, dict[str, float]]
    chain: list[ChainRow]
    max_graph_error: float
    max_chain_error: float
    min_mask_iou: float
    mean_mask_iou: float
    bounds: Bounds

    @classmethod
    def of(
        cls,
        variant: str,
        precision: str,
        backend: str,
        record: Mapping[str, Any],
        graphs: dict[str, dict[str, float]],
        chain: list[ChainRow],
    ) -> Parity:
        """Return the figures of graphs and chain; `record` is the reference's."""
        return cls(
            variant=variant,
            precision=precision,
            backend=backend,
            num_frames=record["num_frames"],
            num_tokens=record["num_tokens"],
            graphs=graphs,
            chain=chain,
            max_graph_error=max(max(errors.values()) for errors in graphs.values()),
            max_chain_error=max(row.logits_error for row in chain),
            min_mask_iou=min(row.mask_iou for row in chain),
            mean_mask_iou=float(np.mean([row.mask_iou for row in chain])),
            bounds=BOUNDS[precision],
        )

    @property
    def passed(self) -> bool:
        """Whether graphs and masks are within the bounds of the precision."""
        return (
            self.max_graph_error <= self.bounds.max_relative_error
            and self.min_mask_iou >= self.bounds.min_mask_iou
        )

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        return (
            f"parity {'passed' if self.passed else 'FAILED'}: worst relative error "
            f"{self.max_graph_error:.1e} per graph, {self.max_chain_error:.1e} over the chain; "
            f"mask IoU at least {self.min_mask_iou:.6f} ({self.variant} on {self.backend})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, as manifests hold it."""
        return {**asdict(self), "passed": self.passed}
