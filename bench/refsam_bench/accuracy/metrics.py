"""Region similarity J, boundary measure F and their statistics, as DAVIS-2017 defines them.

Everything here judges one mask against one mask, or one series of frame values. Which masks are
compared with which, and which frames count, is in `protocols`.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from refsam_export.parity.compare import mask_iou
from refsam_trt.errors import UsageError

Mask: TypeAlias = NDArray[np.bool_]
LabelMap: TypeAlias = NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float64]

VOID_LABEL = 255
_TOLERANCE_OF_DIAGONAL = 0.008
_RECALL_THRESHOLD = 0.5
_NUM_DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """What DAVIS reports of one series of frame values.

    `mean` and `recall` (share of the frames above 0.5) are in 0..1. `decay` is the mean of the
    first quarter minus that of the last one, in -1..1; NaN where the official code has none.
    """

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True, eq=False)
class Outline:
    """The boundary of one mask, ready to be compared with the boundaries of other masks.

    Both arrays use the flat index of a frame that is padded by the tolerance on every side:
    `positions` (int64 [n]) are the boundary pixels, `reach` (bool [padded height * padded width])
    is true within the tolerance of any of them.
    """

    shape_hw: tuple[int, int]
    positions: NDArray[np.int64]
    reach: Mask


def region_similarity(predicted: Mask, true: Mask, void: Mask | None = None) -> float:
    """Return J, the intersection over union of two masks, 1 if both are empty.

    Args:
        predicted: bool [H, W].
        true: bool [H, W].
        void: bool [H, W], pixels that count for neither mask; None means no pixel.

    Raises:
        UsageError: the shapes differ.
    """
    _refuse_shapes(predicted.shape, true.shape)
    if void is None:
        return mask_iou(predicted, true)
    _refuse_shapes(void.shape, true.shape)
    return mask_iou(predicted & ~void, true & ~void)


def outline_agreement(predicted: Outline, true: Outline) -> float:
    """Return F, the harmonic mean of boundary precision and boundary recall, in 0..1.

    A boundary pixel is right if a pixel of the other boundary lies within
    `boundary_tolerance_px`. F is 1 if neither mask has a boundary (one that covers the whole frame
    has none) and 0 if only one has.

    Raises:
        UsageError: the masks were of different shapes.
    """
    _refuse_shapes(predicted.shape_hw, true.shape_hw)
    num_predicted, num_true = predicted.positions.size, true.positions.size
    if num_predicted == 0 or num_true == 0:
        return float(num_predicted == num_true)
    precision = np.count_nonzero(true.reach[predicted.positions]) / num_predicted
    recall = np.count_nonzero(predicted.reach[true.positions]) / num_true
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def outline_of(mask: Mask) -> Outline:
    """Return the boundary of a mask (bool [H, W]) and the pixels within the tolerance of it."""
    height, width = mask.shape
    radius = boundary_tolerance_px(height, width)
    row_stride = width + 2 * radius
    rows, columns = np.nonzero(boundary_map(mask))
    positions = (rows + radius) * row_stride + columns + radius
    reach = np.zeros((height + 2 * radius) * row_stride, dtype=np.bool_)
    # Writing the disk around each boundary pixel costs half of a distance transform of the frame.
    for dy in range(-radius, radius + 1):
        half_width = math.isqrt(radius * radius - dy * dy)
        for dx in range(-half_width, half_width + 1):
            reach[positions + (dy * row_stride + dx)] = True
    return Outline((height, width), positions, reach)


def boundary_map(mask: Mask) -> Mask:
    """Return the boundary pixels of a mask, one pixel wide, shifted half a pixel to the origin.

    A pixel is boundary if it differs from its right, lower or lower right neighbour. In the last
    row only the right one is asked, in the last column only the lower one, in the corner none;
    so a mask has no boundary where an edge of the frame cuts it off.

    Args:
        mask: bool [H, W]. The result has the same shape.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1, :] |= mask[:-1, :] ^ mask[1:, :]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def boundary_tolerance_px(height: int, width: int) -> int:
    """Return how far apart two boundaries may be: 0.8 % of the image diagonal, rounded up."""
    return math.ceil(_TOLERANCE_OF_DIAGONAL * math.sqrt(height * height + width * width))


def statistics(values: FloatArray) -> Statistics:
    """Return mean, recall and decay of a series of frame values.

    Args:
        values: float64 [T], T at least 1, in frame order, each in 0..1.
    """
    recall = float(np.mean(values > _RECALL_THRESHOLD))
    return Statistics(float(np.mean(values)), recall, _decay(values))


def _decay(values: FloatArray) -> float:
    """Return the mean of the first of four bins minus that of the last; bins share their ends.

    The official code keeps the bin edges in 8 bits, in NumPy 2 the end of the slice too, so from
    256 frames on they wrap: bins become other frames or empty (NaN). Kept, to agree with it.
    """
    edges = np.round(np.linspace(1, len(values), _NUM_DECAY_BINS + 1) + 1e-10) - 1
    starts = edges.astype(np.int64) % 256
    stops = (starts + 1) % 256
    first, last = values[: stops[1]], values[starts[-2] : stops[-1]]
    if first.size == 0 or last.size == 0:
        return math.nan
    return float(np.mean(first) - np.mean(last))


def _refuse_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected or len(shape) != 2:
        raise UsageError(
            f"masks of shapes {shape} and {expected} cannot be compared: give two arrays "
            "[height, width] of the same size"
        )
