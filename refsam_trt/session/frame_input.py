"""One frame -> network input: preprocessed on the host, or taken as it is where it lies on the GPU.

A frame on the GPU is the network's input already, as whoever decoded it left it there: float32
[1, 3, S, S], resized, normalised and padded as `manifest.preprocess` says. Nothing of it is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from refsam_trt.backends.base import Buffer
from refsam_trt.errors import VideoError
from refsam_trt.image.preprocess import Preprocessor, checked_hw

_HOST = 1
"""DLPack's number for memory of the CPU."""

Color = Literal["rgb", "bgr"]
Adopt = Callable[[Any], Buffer]


def is_on_device(frame: Any) -> bool:
    """Say whether a frame is another library's array that does not lie in host memory."""
    if isinstance(frame, np.ndarray):
        return False
    if hasattr(frame, "__dlpack_device__"):
        return int(frame.__dlpack_device__()[0]) != _HOST
    return hasattr(frame, "__cuda_array_interface__")


def frame_size(frame: Any, declared_hw: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the video's frames in pixels, as this frame tells them.

    Raises:
        VideoError: no frame, or one on the GPU, which does not tell, without `declared_hw`.
    """
    if not is_on_device(frame):
        return checked_hw(frame)
    if declared_hw is None:
        raise VideoError(
            "frame: an array on a GPU is the network's input and does not tell how large the video "
            "is; open the session with open_video(original_hw=(height, width))"
        )
    return declared_hw


def network_image(
    frame: Any, preprocessor: Preprocessor, color: Color, adopt: Adopt
) -> np.ndarray | Buffer:
    """Return the network's input, float32 [1, 3, S, S], where the frame lies.

    Args:
        frame: uint8 [H, W, 3] on the host; or float32 [1, 3, S, S] on the GPU, RGB whatever
            `color` says, with `__dlpack__` or `__cuda_array_interface__`.
        preprocessor: of this video.
        color: channel order of frames on the host.
        adopt: what the backend makes a buffer of such an array with.

    Raises:
        VideoError: an array of another kind.
        BackendError: a frame on a GPU for a backend without one.
    """
    if not is_on_device(frame):
        return preprocessor(frame[..., ::-1] if color == "bgr" else frame)
    buffer = adopt(frame)
    size = preprocessor.config.image_size
    expected = ("float32", (1, 3, size, size))
    if (buffer.dtype, buffer.shape) != expected:
        raise VideoError(
            f"frame: {buffer.dtype} {list(buffer.shape)} on a GPU, expected float32 "
            f"{list(expected[1])}, preprocessed as the manifest says; copy uint8 frames to the host"
        )
    return buffer
