"""What a family hands out per frame, before it becomes masks at the size of the video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RawFrame:
    """Results of one frame; host arrays that nobody else holds.

    Attributes:
        frame_index: frame the results belong to, counted from 0.
        expression_ids: B ids.
        texts: B cleaned-up expressions.
        low_res_logits: float32 [B, 4h, 4w], of the square network input.
        predicted_iou: float32 [B], raw.
    """

    frame_index: int
    expression_ids: tuple[int, ...]
    texts: tuple[str, ...]
    low_res_logits: np.ndarray
    predicted_iou: np.ndarray

    @classmethod
    def empty(cls, frame_index: int) -> RawFrame:
        """Return the results of a frame without expressions."""
        return cls(frame_index, (), (), np.empty((0, 0, 0), np.float32), np.empty(0, np.float32))
