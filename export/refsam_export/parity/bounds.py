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
    # Random weights hesitate more than trained ones, which keep 0.9996.
    "fp16": Bounds(5e-3, 0.98),
    # Three digits less than fp32: the words of trained text encoders move by a tenth.
    "bf16": Bounds(0.2, 0.95),
    # What eight bits cost is for calibration to bound, in J&F. These find graphs that are wrong.
    "int8": Bounds(0.5, 0.5),
    "fp8": Bounds(0.5, 0.5),
}
