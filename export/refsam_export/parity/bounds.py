"""How far a variant may be from the PyTorch reference, by its precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Largest relative error of a graph run alone, least mask IoU of any frame of the chain."""

    max_relative_error: float
    min_mask_iou: float


BOUNDS = {
    "fp32": Bounds(1e-4, 0.999),
    # Trained weights may find little in the parity clip: a few pixels at the edge of a small mask.
    "fp16": Bounds(5e-3, 0.98),
    "bf16": Bounds(5e-2, 0.95),
    # What eight bits cost is for calibration to bound, in J&F. These find graphs that are wrong.
    "int8": Bounds(0.5, 0.5),
    "fp8": Bounds(0.5, 0.5),
}
