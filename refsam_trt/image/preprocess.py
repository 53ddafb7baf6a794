"""Frame -> network input: two integer resizes, normalisation, padding (refsam-model 2.2).

The resize is our own (`resize`) and does not depend on the installed Pillow, so a frame gives the
same bytes everywhere. `media.frames` reads frames; `postprocess` is the way back from logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from refsam_trt.errors import UsageError, VideoError
from refsam_trt.image.resize import axis_table, resize_rounded, resize_truncated
from refsam_trt.limits import MAX_FRAME_PIXELS, MAX_IMAGE_SIZE

FirstResize = Literal["rounded", "truncated"]
_MIN_IMAGE_SIZE = 16


class PreprocessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle asks to be done to a frame: `preprocess` of its manifest.

    `image_size`: side of the square network input, pixels. `downscale_short_side`: the short side
    is first brought to this many pixels, None: no such step. `mean` and `std`: R, G, B, in 0..255
    units. `first_resize`: `truncated` drops the fraction once, after both axes of the first resize,
    as the released scripts do; `rounded` rounds after each axis.

    Raises:
        UsageError: a value out of range.
    """

    image_size: int
    downscale_short_side: int | None = 360
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    first_resize: FirstResize = "rounded"

    def __post_init__(self) -> None:
        _check_side("image_size", self.image_size)
        if self.downscale_short_side is not None:
            _check_side("downscale_short_side", self.downscale_short_side)
        _check_channels("mean", self.mean, -math.inf)
        _check_channels("std", self.std, 0.0)
        if self.first_resize not in get_args(FirstResize):
            raise UsageError(
                f"first_resize: found {self.first_resize!r}, expected one of "
                f"{', '.join(get_args(FirstResize))}"
            )


def _check_side(name: str, value: int) -> None:
    if not _MIN_IMAGE_SIZE <= value <= MAX_IMAGE_SIZE:
        raise UsageError(
            f"{name}: found {value!r}, expected a whole number of pixels from {_MIN_IMAGE_SIZE} "
            f"to {MAX_IMAGE_SIZE}"
        )


def _check_channels(name: str, values: tuple[float, ...], above: float) -> None:
    if len(values) != 3 or not all(math.isfinite(v) and v > above for v in values):
        raise UsageError(
            f"{name}: found {values!r}, expected three finite numbers (R, G, B) above {above}"
        )


@dataclass(frozen=True)
class FrameGeometry:
    """The sizes a frame passes through, (height, width) in pixels.

    `original_hw` -> `downscaled_hw` -> `resized_hw`, which lies in the top left corner of the
    `image_size` x `image_size` network input.
    """

    original_hw: tuple[int, int]
    downscaled_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    image_size: int


def geometry(original_hw: tuple[int, int], config: PreprocessConfig) -> FrameGeometry:
    """Return the sizes that `config` gives to frames of `original_hw` (refsam-model 2.2).

    Raises:
        VideoError: a side of 0, more than `MAX_FRAME_PIXELS` pixels before or after the first
            resize, or so narrow a frame that nothing of it would be left.
    """
    if min(original_hw) < 1:
        raise VideoError(f"frame: found {_size(original_hw)} pixels, expected at least 1 x 1")
    downscaled_hw = _short_side_to(original_hw, config.downscale_short_side)
    for height, width in (original_hw, downscaled_hw):
        if height * width > MAX_FRAME_PIXELS:
            raise VideoError(
                f"frame: found {_size(original_hw)} pixels, which need {_size((height, width))}; "
                f"expected at most {MAX_FRAME_PIXELS:,} pixels; crop or shrink the frames first"
            )
    scale = config.image_size / max(downscaled_hw)
    # SAM rounds halves up; Python's `round` would take them to the even neighbour.
    height, width = (int(side * scale + 0.5) for side in downscaled_hw)
    if min(height, width) < 1:
        raise VideoError(
            f"frame: found {_size(original_hw)} pixels, too narrow for a network input of "
            f"{config.image_size} pixels; crop the frames first"
        )
    return FrameGeometry(original_hw, downscaled_hw, (height, width), config.image_size)


def _short_side_to(hw: tuple[int, int], side: int | None) -> tuple[int, int]:
    if side is None:
        return hw
    height, width = hw
    if height <= width:
        return side, side * width // height
    return side * height // width, side


def _size(hw: tuple[int, ...]) -> str:
    return " x ".join(map(str, hw))


class Preprocessor:
    """Turn frames of one size into network inputs; what depends on the size is done once, here.

    Not changed by a call, so one object may serve several threads. `geometry` holds the sizes.

    Raises:
        VideoError: as `geometry`.
    """

    def __init__(self, original_hw: tuple[int, int], config: PreprocessConfig) -> None:
        self.config = config
        self.geometry = geometry(original_hw, config)
        sizes = (original_hw, self.geometry.downscaled_hw, self.geometry.resized_hw)
        first = resize_truncated if config.first_resize == "truncated" else resize_rounded
        self._resizes = [
            (resize, axis_table(before[0], after[0]), axis_table(before[1], after[1]))
            for resize, (before, after) in zip(
                (first, resize_rounded), pairwise(sizes), strict=True
            )
        ]
        self._mean = np.array(config.mean, np.float32)[:, None, None]
        self._std = np.array(config.std, np.float32)[:, None, None]

    def __call__(
        self, frame: NDArray[np.uint8], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return the network input of one frame.

        `frame`: uint8 [H, W, 3], RGB, of `original_hw`, any strides, only read. Returns float32
        [1, 3, S, S], C-contiguous, (x - mean) / std in the top left `resized_hw` and 0.0 in the
        rest; it is `out`, wholly overwritten, or a new array of the caller's (`out` None).

        Raises:
            VideoError: the frame is not uint8 [H, W, 3] of `original_hw`.
            UsageError: `out` is not a writable C-contiguous float32 [1, 3, S, S].
        """
        self._check_frame(frame)
        batch = self._checked_out(out)
        image = batch[0]
        # [H, W, 3] -> [H, 3, W]: rows and columns of all channels are then plain matrices.
        lines = np.ascontiguousarray(frame.transpose(0, 2, 1))
        for resize, rows, columns in self._resizes:
            lines = resize(lines, rows, columns)
        height, width = self.geometry.resized_hw
        image[:, height:] = 0.0
        image[:, :height, width:] = 0.0
        filled = image[:, :height, :width]
        # Three passes in place: a table of the 256 values is 8 times slower on one core.
        filled[...] = lines.transpose(1, 0, 2)
        filled -= self._mean
        filled /= self._std
        return batch

    def _check_frame(self, frame: object) -> None:
        expected = (*self.geometry.original_hw, 3)
        if not isinstance(frame, np.ndarray):
            raise VideoError(
                f"frame: found {type(frame).__name__}, expected a numpy array, uint8 "
                f"[{_size(expected)}], RGB"
            )
        if frame.dtype != np.uint8 or frame.shape != expected:
            raise VideoError(
                f"frame: found {frame.dtype} [{_size(frame.shape)}], expected uint8 "
                f"[{_size(expected)}], RGB; all frames of a video have the size of its first"
            )

    def _checked_out(self, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        shape = (1, 3, self.geometry.image_size, self.geometry.image_size)
        if out is None:
            return np.empty(shape, np.float32)
        usable = out.flags.c_contiguous and out.flags.writeable
        if out.dtype != np.float32 or out.shape != shape or not usable:
            raise UsageError(
                f"out: found {out.dtype} [{_size(out.shape)}], expected a writable, C-contiguous "
                f"float32 [{_size(shape)}]"
            )
        return out


def checked_hw(frame: np.ndarray) -> tuple[int, int]:
    """Return (height, width) of a frame.

    Raises:
        VideoError: no numpy array [H, W, 3]; its dtype is the preprocessor's to check.
    """
    shape = getattr(frame, "shape", ())
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        raise VideoError(
            f"frame: found {type(frame).__name__} {list(shape)}, expected a numpy array, uint8 "
            "[H, W, 3]"
        )
    return frame.shape[0], frame.shape[1]
