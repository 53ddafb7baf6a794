"""A video whose every call runs on a stream of its own, whichever thread makes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refsam_trt.backends.base import Backend, Buffer
from refsam_trt.families.base import RawFrame, VideoAdapter


class StreamedVideo:
    """Another video (see `VideoAdapter`) on its own stream of a backend.

    Sessions of one thread do not wait for each other, and a session that another thread goes on
    with finds everything done that was begun.

    Args:
        backend: has the streams.
        make_video: called on the new stream, for what it allocates.
    """

    def __init__(self, backend: Backend, make_video: Callable[[], VideoAdapter]) -> None:
        self._stream = backend.new_stream()
        with self._stream:
            self._video = make_video()

    def add_expression(self, expression_id: int, text: str) -> None:
        """Decode this expression from the next frame on."""
        with self._stream:
            self._video.add_expression(expression_id, text)

    def remove_expression(self, expression_id: int) -> None:
        """Forget an expression that was added."""
        with self._stream:
            self._video.remove_expression(expression_id)

    @property
    def expressions(self) -> dict[int, str]:
        """Cleaned-up text per id."""
        return self._video.expressions

    def reset(self) -> None:
        """Forget the video; the expressions stay."""
        with self._stream:
            self._video.reset()

    def reset_track(self, expression_id: int) -> None:
        """Forget what was tracked of one expression."""
        with self._stream:
            self._video.reset_track(expression_id)

    def step(self, image: np.ndarray | Buffer, frame_index: int) -> RawFrame | None:
        """Take one frame."""
        with self._stream:
            return self._video.step(image, frame_index)

    def finish(self) -> list[RawFrame]:
        """Return the results that `step` still owed."""
        with self._stream:
            return self._video.finish()

    def save(self) -> dict[str, np.ndarray]:
        """Return what must be kept to go on later."""
        with self._stream:
            return self._video.save()

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Go on from what `save` returned."""
        with self._stream:
            self._video.restore(tensors)


__all__ = ["StreamedVideo"]
