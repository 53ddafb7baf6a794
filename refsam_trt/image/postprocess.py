"""Low-resolution logits -> logits, masks, label maps and boxes of the frame (refsam-model 2.3).

Decisions are taken on logits of the original size, never on small masks. What becomes of masks is
in the `result` room.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import BackendError, UsageError
from refsam_trt.image.preprocess import FrameGeometry

MAX_LABELS = 255
"""Objects of one label map: uint8, 0 is the background."""

_BLOCK_ROWS = 32
"""Output rows per product: 1.7 ms instead of 6.1 for a 1080p mask on one core, numpy 2.4."""


class Postprocessor:
    """Bring the logits of one frame size to that size; the interpolation is composed once, here.

    The chain of refsam-model 2.3 (bilinear to the network input, crop of the padding, bilinear to
    the downscaled frame, bilinear to the frame) is linear and works on rows and columns apart, so
    the whole of it is `rows @ low_res @ columns` with two matrices, composed in float64 and used
    in float32. `mode="direct"` leaves the downscaled frame out. Not changed by a call, so one
    object may serve several threads.

    Raises:
        UsageError: an unknown mode, or a side of 0 in `low_res_hw`.
    """

    def __init__(
        self,
        geometry: FrameGeometry,
        low_res_hw: tuple[int, int],
        mode: Literal["chained", "direct"] = "chained",
    ) -> None:
        if mode not in ("chained", "direct"):
            raise UsageError(f"postprocess mode: found {mode!r}, expected 'chained' or 'direct'")
        if min(low_res_hw) < 1:
            raise UsageError(f"low_res_hw: found {low_res_hw}, expected at least (1, 1)")
        self.geometry = geometry
        self.low_res_hw = low_res_hw
        rows, columns = (_axis_matrix(low_res_hw, geometry, mode, axis) for axis in (0, 1))
        # What lies under the padding only is never read.
        self._read_hw = _last_used(rows) + 1, _last_used(columns) + 1
        self._columns = np.ascontiguousarray(columns[:, : self._read_hw[1]].T)
        self._row_blocks = _row_blocks(rows)

    def logits(self, low_res_logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of the original frame.

        `low_res_logits`: float32 [h, w] of `low_res_hw`. Returns float32 [H, W], a new array.

        Raises:
            UsageError: another shape or dtype.
            BackendError: not every logit is finite, so that no mask can be trusted.
        """
        if low_res_logits.shape != self.low_res_hw or low_res_logits.dtype != np.float32:
            raise UsageError(
                f"low_res_logits: found {low_res_logits.dtype} {low_res_logits.shape}, expected "
                f"float32 {self.low_res_hw}"
            )
        num_bad = low_res_logits.size - int(np.count_nonzero(np.isfinite(low_res_logits)))
        if num_bad:
            raise BackendError(
                f"low_res_logits: found {num_bad} values that are not finite, expected none; the "
                "graph overflowed: use one of a higher precision"
            )
        height, width = self._read_hw
        wide = low_res_logits[:height, :width] @ self._columns
        out = np.empty(self.geometry.original_hw, np.float32)
        for written, read, weights in self._row_blocks:
            np.matmul(weights, wide[read], out=out[written])
        return out


def _axis_matrix(
    low_res_hw: tuple[int, int], geometry: FrameGeometry, mode: str, axis: int
) -> NDArray[np.float32]:
    """Return the whole chain along one axis as a matrix, [original, low resolution]."""
    matrix = _interpolated(np.eye(low_res_hw[axis]), geometry.image_size)
    matrix = matrix[: geometry.resized_hw[axis]]
    if mode == "chained":
        matrix = _interpolated(matrix, geometry.downscaled_hw[axis])
    return _interpolated(matrix, geometry.original_hw[axis]).astype(np.float32)


def _interpolated(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return [n, k] brought to [size, k]: bilinear, half-pixel centres, edges repeated."""
    n = len(values)
    # PyTorch, without `align_corners`, clamps positions before the first centre, not weights.
    position = np.maximum((np.arange(size) + 0.5) * (n / size) - 0.5, 0.0)
    before = np.minimum(position.astype(np.intp), n - 1)
    after = np.minimum(before + 1, n - 1)
    share = (position - before)[:, None]
    result: NDArray[np.float64] = (1.0 - share) * values[before] + share * values[after]
    return result


def _last_used(matrix: NDArray[np.float32]) -> int:
    return int(np.flatnonzero(matrix.any(axis=0))[-1])


def _row_blocks(rows: NDArray[np.float32]) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """Cut a banded [H, h] into (rows written, rows read, dense weights between them)."""
    blocks = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        used = np.flatnonzero(block.any(axis=0))
        read = slice(int(used[0]), int(used[-1]) + 1)
        written = slice(start, start + len(block))
        blocks.append((written, read, np.ascontiguousarray(block[:, read])))
    return blocks


def mask_from_logits(logits: NDArray[np.float32], threshold: float = 0.0) -> NDArray[np.bool_]:
    """Return where a logit is above the threshold: bool, the shape of `logits` (any).

    0.0 is SAM's threshold (probability 0.5); the Ref-YouTube-VOS scripts use 0.01.
    """
    return logits > threshold


def label_map_from_logits(
    logits: Iterable[NDArray[np.float32]], background: float = 0.1
) -> NDArray[np.uint8]:
    """Return the merge of several expressions into one map: the Ref-DAVIS17 rule.

    `logits`: one plane per expression, finite float [H, W]; an array [K, H, W] or an iterator,
    whose planes are taken one at a time. Returns uint8 [H, W]: 0 where no logit is above
    `background`, else 1 + the index of the largest, the first of equals. That is the argmax over
    a constant background plane followed by the logits with negatives set to 0.

    Raises:
        UsageError: no plane, planes of different shapes, more than 255, or a negative
            `background`.
    """
    if background < 0.0:
        raise UsageError(f"background: found {background}, expected a logit of 0 or more")
    planes = iter(logits)
    first = next(planes, None)
    if first is None:
        raise UsageError("logits: found no plane, expected one [H, W] per expression")
    best = np.full(first.shape, background, first.dtype)
    label_map = np.zeros(first.shape, np.uint8)
    for label, plane in enumerate(chain((first,), planes), start=1):
        if label > MAX_LABELS or plane.ndim != 2 or plane.shape != first.shape:
            raise UsageError(
                f"logits: plane {label} has shape {plane.shape}, expected at most {MAX_LABELS} "
                "planes [H, W], all of one shape"
            )
        # Labels grow, so the largest is the last that was better: 8 times faster than a mask.
        np.maximum(label_map, (plane > best) * np.uint8(label), out=label_map)
        np.maximum(best, plane, out=best)
    return label_map


def box_xyxy_from_mask(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the tight box (x0, y0, x1, y1) of a mask, in pixels; None for an empty mask.

    `mask`: bool [H, W]. x0 and y0 are the first column and row that hold mask, x1 and y1 the last
    ones plus 1: `mask[y0:y1, x0:x1]` holds all of it and x1 - x0 is its width.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
